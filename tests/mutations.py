"""Damage small valid files at random, and count what reading them does.

    python tests/mutations.py --n 5000            # of each format, some minutes
    python tests/mutations.py --n 300 v5 old_mlp

Each file is changed in a few bytes or bits, or cut short. Reading it must end soon: in the right
shape, or in an error of the library that names the file. `crashes`, `hangs`, `exceptions` and
`shapes` count everything else, and must be 0. `stopped` are crashes and loops inside HDF5 that only
its child process met. Other values are no fault where a byte of the numbers was changed; `moved`
counts them where only other bytes were: HDF5 as MATLAB and TensorFlow write it has no checksum for
where the numbers lie.
"""

import argparse
import faulthandler
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import tifffile

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.matfiles import HEADER_73, write_mat
from cytomad_lib.data.stackfiles import inspect_stack, read_stack

HANG = 10.0  # seconds; a loop in the child ends after one
FAULTS = ("crashes", "hangs", "exceptions", "shapes")
STACK = np.random.default_rng(0).integers(0, 200, (16, 16, 6)).astype("float32")
LEGACY = Path(__file__).parent / "data" / "legacy"


def _like_matlab(path, **storage):
    """Write a v7.3 file with what MATLAB puts beside a stack: a text, a struct, references."""
    with h5py.File(path, "w", userblock_size=512, libver="earliest") as file:
        dataset = file.create_dataset("BF", data=STACK.T, **storage)
        dataset.attrs["MATLAB_class"] = np.bytes_("single")
        file["note"] = np.frombuffer("measured".encode("utf-16-le"), "uint16")[:, None]
        file["note"].attrs["MATLAB_class"] = np.bytes_("char")
        file["day/number"] = np.ones((1, 1))
        file["#refs#/a"] = np.zeros(2, "uint64")
        file["cells"] = np.array([[file["#refs#/a"].ref]], h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(HEADER_73)


def _write_v5(path, **options):
    scipy.io.savemat(path, {"note": "measured", "BF": STACK, "day": {"number": 1.0}}, **options)


def _copy(name):
    return lambda path: path.write_bytes((LEGACY / name).read_bytes())


WRITERS = {
    "v5": _write_v5,
    "v5_compressed": lambda path: _write_v5(path, do_compression=True),
    "v73": lambda path: write_mat(path, {"BF": STACK}),
    "v73_matlab": lambda path: _like_matlab(path, chunks=(2, 8, 16), compression=3),
    "v73_contiguous": _like_matlab,
    "npy": lambda path: np.save(path, np.ascontiguousarray(STACK.T)),
    "tif": lambda path: tifffile.imwrite(path, STACK.T),
    "tif_compressed": lambda path: tifffile.imwrite(path, STACK.T, compression="zlib"),
    "old_generator": _copy("model_000005.h5"),
    "old_mlp": _copy("bmodel1_all_000005_0.500.h5"),
}


def run(form, n, seed=0):
    """Damage a file of one format `n` times; return how often what happened, as a Counter."""
    random, counts = np.random.default_rng([seed, n]), Counter(dict.fromkeys(FAULTS, 0))
    with tempfile.TemporaryDirectory() as folder:
        suffix = {"old": ".h5", "npy": ".npy", "tif": ".tif"}.get(form.split("_")[0], ".mat")
        path = Path(folder) / f"whole{suffix}"
        WRITERS[form](path)
        whole, expected = np.frombuffer(path.read_bytes(), np.uint8), _read(path)
        numbers = _places_of_numbers(path, whole)
        for number in range(n):
            spoilt, places = _mutate(random, whole, numbers)
            other = path.with_stem(f"spoilt_{number}")
            other.write_bytes(spoilt.tobytes())
            faulthandler.dump_traceback_later(10 * HANG, exit=True, file=sys.__stderr__)
            start = time.perf_counter()
            counts[_outcome(other, expected, numbers[places].any())] += 1
            if time.perf_counter() - start > HANG:
                print(f"{form}: {number} took long")
                counts["hangs"] += 1
            faulthandler.cancel_dump_traceback_later()
            other.unlink()
    return counts


def _mutate(random, whole, numbers):
    """Return changed bytes, and the places that were changed."""
    spoilt, kind = whole.copy(), random.integers(4)
    if kind == 3 and random.integers(3):  # cut short, in one of twelve
        return spoilt[: random.integers(len(whole))], np.array([], int)
    # Most bytes hold numbers; what lies between them, and is not empty, matters more.
    pool = np.flatnonzero(~numbers & (whole > 0)) if kind != 1 else np.arange(len(whole))
    places = random.choice(pool, random.integers(1, 4))
    if kind == 2:
        spoilt[places] ^= np.uint8(1) << random.integers(8, size=len(places), dtype=np.uint8)
    else:
        spoilt[places] = random.integers(256, size=len(places))
    return spoilt, places


def _outcome(path, expected, numbers_changed):
    try:
        found = _read(path)
    except CytomadError as error:
        text = str(error)
        if path.name not in text:
            print(f"no name: {text}")
            return "exceptions"
        return "stopped" if "HDF5 library crashed" in text or "too long" in text else "refused"
    except Exception as error:  # this is what is counted
        print(f"{path.name}: {type(error).__name__}: {error}")
        return "exceptions"
    if [a.shape for a in found] != [a.shape for a in expected]:
        print(f"{path.name}: shapes {[a.shape for a in found]}")
        return "shapes"
    if all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
        return "same"
    return "values" if numbers_changed else "moved"


def _read(path):
    if path.suffix != ".h5":
        return [read_stack(inspect_stack(path, "BF"))]
    from cytomad_lib import legacy

    # `load_legacy` without Keras' part in it, which takes longest and only meets what is right.
    _, layers, arrays = legacy._read(path, values=True)
    shapes = [shape for layer in layers for shape in layer.shapes.values()]
    return [np.frombuffer(a, np.float32).reshape(s) for a, s in zip(arrays, shapes, strict=True)]


def _places_of_numbers(path, whole):
    """Return which bytes hold the numbers of arrays: bool array (bytes,)."""
    numbers = np.zeros(len(whole), bool)

    def add(_, item):
        if not isinstance(item, h5py.Dataset):
            return
        if item.chunks is None:
            chunks = [(item.id.get_offset(), item.id.get_storage_size())]
        else:
            infos = [item.id.get_chunk_info(i) for i in range(item.id.get_num_chunks())]
            chunks = [(info.byte_offset, info.size) for info in infos]
        for start, size in chunks:
            numbers[start or 0 : (start or 0) + size] = True

    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            file.visititems(add)
    start = whole.tobytes().find(STACK.T.tobytes())
    if start > 0:
        numbers[start : start + STACK.nbytes] = True
    return numbers


def main():
    """Run each format in a process of its own, so that a crash is counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("formats", nargs="*", default=list(WRITERS))
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    failed = False
    for form in options.formats:
        if options.here:
            print(f"{form}: {dict(run(form, options.n, options.seed))}", flush=True)
            continue
        start = time.perf_counter()
        command = [sys.executable, __file__, form, "--n", str(options.n), "--here"]
        done = subprocess.run([*command, "--seed", str(options.seed)], stdout=subprocess.PIPE)
        text = done.stdout.decode().strip() or f"{form}: crashed or hung, exit {done.returncode}"
        print(f"{text}  {time.perf_counter() - start:.0f} s", flush=True)
        failed |= done.returncode != 0 or any(f"'{fault}': 0" not in text for fault in FAULTS)
    sys.exit(failed)


if __name__ == "__main__":
    main()
