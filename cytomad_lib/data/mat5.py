"""Reading MATLAB v5 files (also called v6 and v7): only the array that the caller names.

A v5 file is a row of elements: type code, number of bytes, content. A variable is an element, often
compressed by zlib; its content are more elements: flags with the class, lengths of the axes, name,
numbers. Each type code and size is checked before anything is read or inflated, so a damaged or
malicious file ends in an error, and what lies beside the wanted variable (a `string`, a table) does
not matter.

Source: MathWorks, "MAT-File Format", version 5.
"""

import io
import math
import os
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cytomad_lib.data import stacks
from cytomad_lib.data.errors import ImageFileError
from cytomad_lib.data.reader import GET_AGAIN

# Type codes.
INT8, UINT8, INT32, UINT32, MATRIX, COMPRESSED, UTF8 = 1, 2, 5, 6, 14, 15, 16
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
NUMBERS |= {12: "i8", 13: "u8"}
CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single"}
CLASSES |= {8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32"}
CLASSES |= {14: "int64", 15: "uint64", 16: "function_handle", 17: "string"}
COMPLEX, LOGICAL = 0x800, 0x200  # flags
LONGEST = 4096  # bytes of axes, name or field names; MATLAB's names have 63
MOST_AXES = 32


@dataclass
class Variable:
    """A variable of a file, and where its numbers begin.

    Parameters
    ----------
    name, matlab_class : str
    shape : tuple of int
        As MATLAB has it.
    fields : list of str
        Of a struct.
    is_complex : bool
    source : _Source
        Stands behind the name, before the numbers.
    """

    name: str
    matlab_class: str
    shape: tuple = ()
    fields: tuple = ()
    is_complex: bool = False
    source: object = None


class _Damaged(ValueError):
    """What is wrong with a file, in words."""


class _Source:
    """The bytes of one element of a file, inflated if need be; never more than are asked for."""

    def __init__(self, file, order, size, compressed=False):
        self.file, self.order, self.left = file, order, size
        self.inflater = zlib.decompressobj() if compressed else None

    def read(self, n):
        """Return exactly `n` bytes."""
        if self.inflater is None:
            content = self.file.read(min(n, self.left))
            self.left -= len(content)
        else:
            content = self._inflate(n)
        if len(content) < n:
            raise _Damaged("it is cut short")
        return content

    def _inflate(self, n):
        parts = []
        while n > 0:
            packed = self.inflater.unconsumed_tail
            if not packed:
                packed = self.file.read(min(2**16, self.left))
                self.left -= len(packed)
            parts.append(self.inflater.decompress(packed, n))
            if not parts[-1] and not packed:
                break
            n -= len(parts[-1])
        return b"".join(parts)

    def skip(self, n):
        """Leave out `n` bytes."""
        if self.inflater is None:
            self.left -= n
            self.file.seek(n, io.SEEK_CUR)
        else:
            while n > 0:
                n -= len(self.read(min(n, stacks.READ_BYTES)))

    def finish(self):
        """Make sure that a compressed element ends here; zlib then compares its checksum."""
        if self.inflater is not None and (len(self._inflate(9)) > 8 or not self.inflater.eof):
            raise _Damaged("it inflates to more than it declares, or is cut short")

    def tag(self):
        """Read a type code, a size, and the content where it is so small that it is in the tag."""
        code, size = struct.unpack(self.order + "II", start := self.read(8))
        if code < 2**16:
            return code, size, None
        code, size = code & 0xFFFF, code >> 16
        if size > 4:
            raise _Damaged(f"a small element declares {size} bytes")
        return code, size, start[4 : 4 + size]

    def element(self, *codes):
        """Read a small element of one of these types."""
        code, size, content = self.tag()
        if code not in codes or size > LONGEST:
            raise _Damaged(f"an element of type {code} declares {size} bytes")
        return self.read(size + -size % 8)[:size] if content is None else content


def stack(path, variable, axes=None, tile=None, cells=(), shape=None):
    """Read an image stack: see `stacks.read_cells`."""
    with _open(path, variable) as (found, source, dtype):
        array = _Array(source, found.shape[::-1], dtype)
        declared = stacks.DTYPE_OF_CLASS[found.matlab_class]
        stored = stacks.Stored(array, variable, "YXN", matlab=True, dtype=declared)
        axes = stacks.find_axes(path, stored, axes, tile)
        parts = stacks.read_cells(path, stored, axes, tile, cells, shape)
        yield next(parts) | {"whole": True}
        yield from parts
        if len(cells):  # go on to the end, where the checksum is
            array[(slice(array.shape[0], None),)]
            found.source.finish()


class _Array:
    """Numbers that can only be read from the first to the last."""

    def __init__(self, source, shape, dtype):
        self.source, self.shape, self.dtype = source, shape, dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.place = 0

    def __getitem__(self, index):
        """Return rows, which must lie behind those of the call before."""
        rows = index[0] if isinstance(index, tuple) else slice(None)
        start, stop, _ = rows.indices(self.shape[0])
        self.source.skip((start - self.place) * self.row_bytes)
        self.place = stop
        content = self.source.read((stop - start) * self.row_bytes)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


@contextmanager
def _open(path, variable):
    """Give the variable, the source of its numbers and their type as they are stored."""
    try:
        with open(path, "rb") as file:
            found = _find(path, file, variable)
            stacks.check_class(path, variable, found.matlab_class, found.fields)
            if found.is_complex:
                stacks.refuse_complex(path, variable)
            declared = math.prod(found.shape) * stacks.DTYPE_OF_CLASS[found.matlab_class].itemsize
            stored = os.stat(path).st_size
            if declared > stacks.MOST_COMPRESSION * stored:
                stacks.refuse_size(path, f"'{variable}'", declared, stored)
            yield found, *_numbers(found)
    except (_Damaged, zlib.error, struct.error, OSError) as error:
        raise ImageFileError(
            f"{path} cannot be read as MATLAB v5: {error}. Expected a complete file; it is "
            f"damaged or cut short. {GET_AGAIN}"
        ) from error


def _find(path, file, variable):
    """Go through the elements of a file; return the wanted variable, its source behind the name."""
    size = os.stat(path).st_size
    file.seek(126)
    order = "<" if file.read(2) == b"IM" else ">"
    place, names, sources = 128, [], {}
    while place < size:
        file.seek(place)
        code, length = struct.unpack(order + "II", file.read(8))
        place += 8 + length
        if code not in (MATRIX, COMPRESSED):
            raise _Damaged(f"it holds an element of type {code}")
        if place > size:
            raise _Damaged(f"it ends {place - size:,} bytes early")
        found = _variable(_Source(file, order, length, code == COMPRESSED))
        names.append(found.name)
        sources[found.name] = found, file.tell()
    if names.count(variable) > 1:
        raise _Damaged(f"'{variable}' is in it {names.count(variable)} times")
    if variable not in names:
        stacks.refuse_missing_variable(path, variable, [name for name in names if name])
    found, place = sources[variable]
    file.seek(place)
    return found


def _variable(source):
    """Read a variable down to its name."""
    if source.inflater is not None:
        code, _, _ = source.tag()
        if code != MATRIX:
            raise _Damaged(f"it holds a compressed element of type {code}")
    flags, _ = struct.unpack(source.order + "II", source.element(UINT32))
    matlab_class = CLASSES.get(flags & 0xFF)
    if matlab_class is None:
        raise _Damaged(f"it holds a variable of class {flags & 0xFF}")
    if matlab_class == "string":  # and other classes of today, which have no axes here
        return Variable(_text(source.element(INT8)), matlab_class)
    lengths = source.element(INT32)
    shape = struct.unpack(f"{source.order}{len(lengths) // 4}i", lengths)
    if not 2 <= len(shape) <= MOST_AXES or min(shape) < 0:
        raise _Damaged(f"it holds a variable of shape {stacks.shape_text(shape)}")
    name = _text(source.element(INT8, UINT8, UTF8))
    fields = _fields(source) if matlab_class == "struct" else ()
    if flags & LOGICAL:
        matlab_class = "logical"
    return Variable(name, matlab_class, shape, fields, bool(flags & COMPLEX), source)


def _fields(source):
    """List the names of the fields of a struct; they all take the same number of bytes."""
    (length,) = struct.unpack(source.order + "i", source.element(INT32))
    names = source.element(INT8)
    if length < 1:
        raise _Damaged(f"its field names have {length} bytes")
    return [_text(names[place : place + length]) for place in range(0, len(names), length)]


def _numbers(found):
    """Return the source of a variable's numbers and their type, which may be a smaller one."""
    code, size, content = found.source.tag()
    dtype = np.dtype(found.source.order + NUMBERS.get(code, "V1"))
    if not np.can_cast(dtype, stacks.DTYPE_OF_CLASS[found.matlab_class]):
        raise _Damaged(f"'{found.name}' is {found.matlab_class}, stored as type {code}")
    if size != math.prod(found.shape) * dtype.itemsize:
        raise _Damaged(
            f"'{found.name}' of {stacks.shape_text(found.shape)} is stored in {size:,} bytes"
        )
    if content is None:
        return found.source, dtype
    return _Source(io.BytesIO(content), found.source.order, size), dtype


def _text(content):
    return content.partition(b"\0")[0].decode("utf-8", "replace")
