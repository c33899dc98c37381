'''Datasets of your own: the file `dataset.toml` in the dataset's folder says how it is laid out.

One or several images go in (brightfield, fluorescence), one comes out (phase, fluorescence). There
is one folder per batch, class (dose) and split:

    name = "my-cells"                     # what the dataset is called
    folders = "{batch}/{class}/{split}"   # their order; {dose} too, where there are doses
    batches = ["Day1", "Day2"]            # names of the folders; codes count in this order, and
    classes = ["A549", "HeLa"]            # the first batch is the "first batch" of the recipes
    field_of_view_um = 45.0               # side of an image, micrometres

    class_term = "cell line"              # optional: what a class is
    splits = {Valid = "Val"}              # optional: names of the folders Train, Valid and Test
    # doses = ["0 uM", "1 uM", "10 uM"]   # with {dose}: from none to most
    # groups = ["Day1/A549"]              # optional: the only combinations that exist
    wavelength_um = 0.633                 # optional: of the light, for dry mass in pg
    refraction_increment_um3_per_pg = 0.19  # optional: of dry matter, 0.18 to 0.2; else 0.19

    [[input]]                             # one or several, in the order of the channels
    file = "{class}_BF.mat"               # {batch}, {class}, {dose}, {split} are filled in
    variable = "BF"                       # .mat only: height x width x cells; filled in, too

    [[input]]
    file = "DAPI/*.tif"                   # one file per cell; see below
    name = "DAPI"                         # optional: for figures; else as the variable or file
    scale = 0.001                         # optional: stored numbers times this are used

    [target]
    file = "{class}_QPI.ome.tif"
    axes = "NYX"                          # optional: N cells, Y height, X width
    name = "phase"                        # optional, as above
    unit = "rad"                          # optional; "rad" says that it is a phase image

    [truth]                               # optional: the target without batch effect, if known
    file = "{class}_QPI_TRUE.npy"

A `file` is a `.mat`, TIFF (also OME-TIFF) or `.npy` file with a stack of cells. One `*` in its name
stands for anything: all files that match are read as one stack, in the order of their names and
numbers, and what the `*` stands for must agree between the images of a cell. With `tile = 40`, each
image is a montage of tiles of 40 x 40 pixels, read row by row; tiles with one value everywhere are
empty and left out. `axes` gives the order of the axes in the file; without it, the order is that of
MATLAB in `.mat` files (YXN), that of the file's own description in TIFF, and else inferred from the
shape.

The networks learn best where numbers are of the order of 1, as phases in rad are: give 16-bit
images a `scale`. Capitals need not agree with those on the disk: what is called `train` or
`A549_BF.MAT` there is found as well.

Example
-------
>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "dataset.toml"
>>> _ = path.write_text("""
... name = "my-cells"
... folders = "{batch}/{class}/{split}"
... batches = ["Day1", "Day2"]
... classes = ["A549", "HeLa"]
... field_of_view_um = 45
... input = [{file = "{class}_BF.mat", variable = "BF"}]
... target = {file = "{class}_QPI.mat", variable = "QPI", unit = "rad"}
... """)
>>> said = read_description(path)
>>> said.file("BF", "Test", "Day1", "HeLa")
'Day1/HeLa/Test/HeLa_BF.mat'
'''

import math
import re
import tomllib
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from cytomad_lib.data.errors import DatasetError

DESCRIPTION = "dataset.toml"
SPLITS = ("Train", "Valid", "Test")
TAKEN = ("lung", "drug")  # the names of the published datasets
PUBLISHED_FOLDER = Path(__file__).parent  # where their descriptions are
REFRACTION_INCREMENT = 0.19  # µm³ per pg, of protein (0.18 to 0.2)

# What a description may hold. A reader of TOML takes memory with the square of the dots in a line.
MOST_BYTES = 256_000
MOST_DOTS = 200
MOST_GROUPS = 100_000
LONGEST_GROUP_NAME = 200  # bytes, of the 255 that a file's name may have
SMALLEST, LARGEST = 1e-12, 1e12  # numbers; float32 has room for such multiples of pixels

SUFFIXES = (".mat", ".npy", ".tif", ".tiff")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_INCREMENT = "refraction_increment_um3_per_pg"
_TOP_KEYS = ("name", "folders", "batches", "classes", "field_of_view_um", "input", "target")
_MORE_TOP_KEYS = ("class_term", "doses", "groups", "splits", "truth", "wavelength_um", _INCREMENT)
_NO_NAME = set('/\\:*?"<>|{}')  # not in names of files everywhere
_NAME = (
    'a plain name without / \\ : * ? " < > | { } $, without spaces at its ends, and not beginning '
    "with . or _"
)


@dataclass(frozen=True)
class Contrast:
    """One kind of image: where it is stored, and what it shows."""

    file: str  # name of the file, with placeholders
    name: str  # for people
    variable: str = ""  # of a .mat file, with placeholders
    unit: str = ""
    scale: float = 1.0  # what stored numbers are multiplied by
    axes: str | None = None  # such as "NYX"; None: the format's own, or inferred
    tile: int | None = None  # side of the tiles of a montage, pixels


@dataclass(frozen=True)
class Description:
    """The checked content of a `dataset.toml`.

    Images go by their role, whatever they show: `"BF"`, `"BF2"`, `"BF3"`… go in, `"QPI"` comes
    out, `"QPI_TRUE"` is the truth.
    """

    name: str
    class_term: str
    batches: tuple[str, ...]
    classes: tuple[str, ...]
    doses: tuple[str, ...]  # empty where there are none
    field_of_view_um: float
    folders: tuple[str, ...]  # placeholders in their order, "split" last
    splits: dict[str, str] = field(hash=False)  # split -> name of its folder
    contrasts: dict[str, Contrast] = field(hash=False)  # role -> what it shows
    combinations: tuple = field(hash=False, repr=False)  # all (batch, class, dose), in this order
    wavelength_um: float | None = None  # of the light of the phase images, if given
    refraction_increment_um3_per_pg: float = REFRACTION_INCREMENT

    def folder(self, batch, class_name, dose=None):
        """Return the folder of a group, under the dataset's root."""
        names = {"batch": batch, "class": class_name, "dose": dose}
        return "/".join(names[place] for place in self.folders[:-1])

    def file(self, role, split, batch, class_name, dose=None):
        """Return the path of a file under the dataset's root."""
        name = self._fill(self.contrasts[role].file, split, batch, class_name, dose)
        return f"{self.folder(batch, class_name, dose)}/{self.splits[split]}/{name}"

    def variable(self, role, split, batch, class_name, dose=None):
        """Return the name of the variable in a `.mat` file."""
        return self._fill(self.contrasts[role].variable, split, batch, class_name, dose)

    def _fill(self, pattern, split, batch, class_name, dose):
        names = {"batch": batch, "class": class_name, "dose": dose, "split": self.splits[split]}
        return _PLACEHOLDER.sub(lambda found: names[found[1]], pattern)


def read_description(path):
    """Read and check a `dataset.toml`; the module describes its content.

    Parameters
    ----------
    path : path

    Returns
    -------
    Description

    Raises
    ------
    DatasetError
        For the first mistake: names the file and the key, what was found and what is expected.
        Whether the folders exist is not checked.
    """
    path = Path(path)
    top = _Table(path, _load(path), _TOP_KEYS, _MORE_TOP_KEYS)
    if top.text("name") in TAKEN and path.parent != PUBLISHED_FOLDER:
        raise top.wrong("name", "another name: the published datasets are called so")
    folders = _folders(top)
    if ("doses" in top.values) != ("dose" in folders):
        raise top.wrong("doses", "a list exactly where `folders` has {dose}")
    lists = {key: top.names(key) for key in ("batches", "classes")}
    lists["doses"] = top.names("doses") if "dose" in folders else ()
    return Description(
        name=top.text("name"),
        class_term=top.text("class_term", "class"),
        **lists,
        field_of_view_um=top.number("field_of_view_um"),
        folders=folders,
        splits=_splits(top),
        contrasts=_contrasts(top, folders),
        combinations=_combinations(top, **lists),
        wavelength_um=top.number("wavelength_um"),
        refraction_increment_um3_per_pg=top.number(_INCREMENT, REFRACTION_INCREMENT),
    )


class _Table:
    """One table of the file; each value is checked when it is taken."""

    def __init__(self, path, values, required, optional=(), name=""):
        self.path, self.name, self.values = path, name, values
        where = f"in {name}" if name else "at the top"
        known = (*required, *optional)
        for key in (key for key in values if key not in known):
            lost = name and key in _TOP_KEYS + _MORE_TOP_KEYS
            hint = "move it above the first [table]" if lost else "check its spelling"
            raise DatasetError(
                f"{path} has an unknown key {key!r} {where}. Expected some of {', '.join(known)}; "
                f"{hint}."
            )
        for key in (key for key in required if key not in values):
            raise DatasetError(
                f"{path} has no key {key!r} {where}, only {', '.join(values) or 'nothing'}. "
                f"Expected all of {', '.join(required)}; add it."
            )

    def wrong(self, key, expected, found=None):
        """Return the error for a value that is not what it should be."""
        found = repr(self.values.get(key, "missing") if found is None else found)
        found = found if len(found) <= 200 else f"{found[:200]} ..."
        where = f"{self.name} {key}".strip()
        return DatasetError(f"{self.path}: {where} is {found}. Expected {expected}.")

    def take(self, key, fits, expected, default=None):
        """Return a value that fits; the default where the key is missing."""
        if key in self.values and not fits(self.values[key]):
            raise self.wrong(key, expected)
        return self.values.get(key, default)

    def text(self, key, default=None):
        expected = "a text in quotes, on one line and without $"
        return self.take(key, lambda value: value == default or _is_line(value), expected, default)

    def number(self, key, default=None):
        def fits(value):
            return type(value) in (int, float) and SMALLEST <= value <= LARGEST

        expected = f"a number above zero, from {SMALLEST:g} to {LARGEST:g}"
        value = self.take(key, fits, expected, default)
        return value if value is None else float(value)

    def names(self, key):
        value = self.take(key, _is_filled_list, 'a list of names, such as ["one", "two"]')
        for name in value:
            if not _is_name(name):
                raise self.wrong(key, f"in it {_NAME}", name)
        _refuse_repeated(self, key, value)
        return tuple(value)


def _load(path):
    if not path.is_file():
        raise DatasetError(f"{path} is not a file. Expected a text file; rename what is there.")
    try:
        with path.open("rb") as file:
            stored = file.read(MOST_BYTES + 1)
        text = stored.decode("utf-8-sig")  # Windows may add a mark
    except (OSError, UnicodeDecodeError) as error:
        expected = "Expected a text file in UTF-8; save it as such."
        raise DatasetError(f"{path} cannot be read ({error}). {expected}") from error
    if len(stored) > MOST_BYTES or any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise DatasetError(
            f"{path} is too large. Expected at most {MOST_BYTES:,} bytes, and {MOST_DOTS} dots in "
            "a line; describe fewer groups, or put long lists on several lines."
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f'{path} is not valid TOML: {error}. Expected lines such as name = "my-cells"; '
            "mend that line."
        ) from error


def _is_filled_list(value):
    return isinstance(value, list) and len(value) > 0


def _is_line(text):
    one_line = isinstance(text, str) and text.isprintable() and text.strip()
    return one_line and "$" not in text  # figures read $ as formulas


def _is_name(text):
    return (
        _is_line(text)
        and text == text.strip()
        and not _NO_NAME & set(text)
        and not text.startswith((".", "_"))  # hidden, left by Jupyter or macOS; no label in figures
    )


def folded(name):
    """Return what names have in common that a disk may take for the same.

    Windows and macOS take "a" for "A", and macOS writes "ä" as two characters.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _refuse_repeated(table, key, names):
    counts = Counter(map(folded, names))
    repeated = [name for name in names if counts[folded(name)] > 1]
    if repeated:
        raise table.wrong(key, "different names, also apart from capitals", repeated)


def _folders(top):
    """Return the places in the order of the folders, such as ("batch", "class", "split")."""
    parts = [_PLACEHOLDER.fullmatch(part) for part in top.text("folders").split("/")]
    places = tuple(part[1] if part else "" for part in parts)
    known = (["batch", "class", "dose", "split"], ["batch", "class", "split"])
    if sorted(places) not in known or places[-1] != "split":
        raise top.wrong(
            "folders",
            '"{batch}/{class}/{split}" or, with doses, "{class}/{batch}/{dose}/{split}": each of '
            "these once, in the order of your folders, {split} last",
        )
    return places


def _splits(top):
    own = top.take("splits", lambda v: isinstance(v, dict), 'a table, such as {Valid = "Val"}', {})
    table = _Table(top.path, own, (), SPLITS, "splits")
    names = {split: table.take(split, _is_name, _NAME, split) for split in SPLITS}
    _refuse_repeated(top, "splits", list(names.values()))
    return names


def _contrasts(top, folders):
    """Return {role: Contrast}; the roles of what goes in are "BF", "BF2", "BF3" and so on."""
    expected = "one or several tables, each under [[input]] in double brackets"
    inputs = top.take("input", _is_filled_list, expected)
    if not all(isinstance(table, dict) for table in inputs):
        raise top.wrong("input", expected)
    tables = {}
    for number, values in enumerate(inputs, 1):
        role = f"BF{number}" if number > 1 else "BF"
        tables[role] = _image_table(top, values, f"[[input]] number {number}", "name")
    tables["QPI"] = _image_table(top, top.values["target"], "[target]", "name", "unit")
    if "truth" in top.values:
        tables["QPI_TRUE"] = _image_table(top, top.values["truth"], "[truth]")
    contrasts, sources, names = {}, {}, set()
    for role, table in tables.items():
        found = contrasts[role] = _contrast(table, folders, contrasts.get("QPI"))
        if role.startswith("BF") and found.name in names:
            raise table.wrong("name", "another name than the inputs above it have", found.name)
        names.add(found.name)
        # A target that is an input would leave nothing to learn.
        source = (folded(found.file), found.variable)
        if source in sources:
            expected = f"another file or variable than in {sources[source]}"
            raise table.wrong("file", expected, " / ".join(source))
        sources[source] = table.name
    return contrasts


def _image_table(top, values, name, *more):
    if not isinstance(values, dict):
        raise top.wrong(name.strip("[]"), f"one table, under {name}")
    in_mat = str(values.get("file", ".mat")).casefold().endswith(".mat")
    required = ("file", "variable") if in_mat else ("file",)
    return _Table(top.path, values, required, (*more, "scale", "axes", "tile"), name)


def _contrast(table, folders, target):
    """Return a Contrast; a truth shows the same as the target before it."""
    file = _file(table, folders)
    variable = _pattern(table, "variable", folders) if "variable" in table.values else ""
    usual = _PLACEHOLDER.sub("", variable or file.partition(".")[0]).strip(" _-*/") or "image"
    return Contrast(
        file=file,
        name=target.name if target else table.text("name", usual),
        variable=variable,
        unit=target.unit if target else table.text("unit", ""),
        scale=table.number("scale", target.scale if target else 1.0),
        axes=table.take(
            "axes",
            lambda v: isinstance(v, str) and sorted(v) in (["N", "X", "Y"], ["X", "Y"]),
            'N (cells), Y (height) and X (width) in the order of the file, such as "NYX" or "YXN"; '
            '"YX" for files with one image',
        ),
        tile=table.take(
            "tile",
            lambda v: type(v) is int and 2 <= v <= 10_000,
            "the side of a tile in pixels, a whole number such as 40",
        ),
    )


def _pattern(table, key, folders):
    """Return a text after a check of its placeholders."""
    pattern = table.text(key)
    for place in _PLACEHOLDER.findall(pattern):
        if place not in folders:
            known = ", ".join(f"{{{place}}}" for place in folders)
            raise table.wrong(key, f"no other placeholders than those of `folders`: {known}")
    return pattern


def _file(table, folders):
    """Return the name of a file, with placeholders."""
    pattern = _pattern(table, "file", folders)
    *above, name = _PLACEHOLDER.sub("x", pattern).split("/")
    plain = all(_is_name(part) for part in (*above, name.replace("*", "x", 1)))
    if not plain or len(above) > ("*" in name) or not name.casefold().endswith(SUFFIXES):
        raise table.wrong(
            "file",
            "the name of a .mat, .npy, .tif or .tiff file in the split's folder, or a pattern such "
            f'as "BF/*.tif" for one file per cell: {_NAME}; placeholders are filled in',
        )
    return pattern


def _combinations(top, batches, classes, doses):
    """Return all (batch, class, dose) that there can be: by batch, then class, then dose."""
    lengths = [len(names) for names in (batches, classes, doses) if names]
    if math.prod(lengths) > MOST_GROUPS:  # the product would take all memory
        raise DatasetError(
            f"{top.path} describes {' x '.join(f'{length:,}' for length in lengths)} groups. "
            f"Expected at most {MOST_GROUPS:,}; list the names of one dataset only, or divide it."
        )
    every = product(batches, classes, doses or (None,))
    named = {"/".join(filter(None, names)): names for names in every}
    _refuse_same_labels(top.path, named)
    expected = f"a list of some of {', '.join(list(named)[:3])}, …"
    only = top.take("groups", _is_filled_list, expected, list(named))
    if not all(name in named for name in only):
        raise top.wrong("groups", expected)
    return tuple(names for name, names in named.items() if name in only)


def _refuse_same_labels(path, named):
    """Refuse groups whose names cannot be names of result files (batch_class_dose)."""
    seen = {}
    for group in named:
        joined = group.replace("/", "_")
        if (size := len(joined.encode())) > LONGEST_GROUP_NAME:
            raise DatasetError(
                f"{path}: the group {group} has a name of {size} bytes. Expected at most "
                f"{LONGEST_GROUP_NAME}, since files of results are called by it; take shorter "
                "names."
            )
        other = seen.setdefault(folded(joined), group)
        if other != group:
            raise DatasetError(
                f"{path}: the groups {other} and {group} are both {joined} "
                "when joined by _, as files of results are called. Expected names that stay "
                "apart; rename a folder."
            )
