'''Datasets of your own: the file `dataset.toml` in the dataset's folder says how it is laid out.

Images go in (brightfield, fluorescence, several of them), one comes out (phase, fluorescence). The
files are `.mat`, a stack of cells in each, one folder per batch, class (dose) and split:

    name = "my-cells"                     # what the dataset is called
    folders = "{batch}/{class}/{split}"   # their order; {dose} too, where there are doses
    batches = ["Day1", "Day2"]            # names of the folders; codes count in this order, and
    classes = ["A549", "HeLa"]            # the first batch is the "first batch" of the recipes
    field_of_view_um = 45.0               # side of an image, micrometres

    class_term = "cell line"              # optional: what a class is
    splits = {Valid = "Val"}              # optional: names of the folders Train, Valid and Test
    # doses = ["0 uM", "1 uM", "10 uM"]   # with {dose}: from none to most
    wavelength_um = 0.633                 # optional: of the light, for dry mass in pg
    refraction_increment_um3_per_pg = 0.19  # optional: of dry matter, 0.18 to 0.2; else 0.19

    [[input]]                             # one or several, in the order of the channels
    file = "{class}_BF.mat"               # {batch}, {class}, {dose}, {split} are filled in
    variable = "BF"                       # in the file: height x width x cells; filled in, too

    [[input]]
    file = "{class}_DAPI.mat"
    variable = "img"
    name = "DAPI"                         # optional: for figures; else as the variable
    scale = 0.001                         # optional: stored numbers times this are used

    [target]
    file = "{class}_QPI.mat"
    variable = "QPI"
    name = "phase"                        # optional, as above
    unit = "rad"                          # optional; "rad" says that it is a phase image

    [truth]                               # optional: the target without batch effect, if known
    file = "{class}_QPI_TRUE.mat"
    variable = "QPI"

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
REFRACTION_INCREMENT = 0.19  # µm³ per pg, of protein (0.18 to 0.2)

# What a description may hold. A reader of TOML takes memory with the square of the dots in a line.
MOST_BYTES = 256_000
MOST_DOTS = 200
MOST_GROUPS = 100_000
LONGEST_GROUP_NAME = 200  # bytes, of the 255 that a file's name may have
SMALLEST, LARGEST = 1e-12, 1e12  # numbers; float32 has room for such multiples of pixels

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_TOP_KEYS = ("name", "folders", "batches", "classes", "field_of_view_um", "input", "target")
_MORE_TOP_KEYS = ("class_term", "doses", "splits", "truth")
_MORE_TOP_KEYS += ("wavelength_um", "refraction_increment_um3_per_pg")
_NO_NAME = set('/\\:*?"<>|{}$')  # not in names of files everywhere; figures read $ as formulas
_NAME = (
    'a plain name without / \\ : * ? " < > | { } $, without spaces at its ends, and not beginning '
    "with . or _"
)


@dataclass(frozen=True)
class Contrast:
    """One kind of image: the variable that holds it, and what it shows."""

    variable: str  # with placeholders, see `Description.variable`
    name: str  # for people
    unit: str = ""
    scale: float = 1.0  # what stored numbers are multiplied by


@dataclass(frozen=True)
class Description:
    """What a `dataset.toml` says, checked.

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
    files: dict[str, str] = field(hash=False)  # role -> name of the file, with placeholders
    wavelength_um: float | None = None  # of the light of the phase images, if given
    refraction_increment_um3_per_pg: float = REFRACTION_INCREMENT

    def groups(self):
        """List all (batch, class, dose) that there can be: by batch, then class, then dose."""
        return list(product(self.batches, self.classes, self.doses or (None,)))

    def folder(self, batch, class_name, dose=None):
        """Return the folder of a group, under the dataset's root."""
        names = {"batch": batch, "class": class_name, "dose": dose}
        return "/".join(names[place] for place in self.folders[:-1])

    def file(self, role, split, batch, class_name, dose=None):
        """Return the path of a file under the dataset's root."""
        name = self._fill(self.files[role], split, batch, class_name, dose)
        return f"{self.folder(batch, class_name, dose)}/{self.splits[split]}/{name}"

    def variable(self, role, split, batch, class_name, dose=None):
        """Return the name of the variable in a file."""
        return self._fill(self.contrasts[role].variable, split, batch, class_name, dose)

    def _fill(self, pattern, split, batch, class_name, dose):
        names = {"batch": batch, "class": class_name, "dose": dose, "split": self.splits[split]}
        return _PLACEHOLDER.sub(lambda found: names[found[1]], pattern)


def read_description(path):
    """Read and check a `dataset.toml`; the module says what is in it.

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
        Whether the folders are there is not looked at.
    """
    path = Path(path)
    top = _Table(path, _load(path), _TOP_KEYS, _MORE_TOP_KEYS)
    if top.text("name") in TAKEN:
        raise top.wrong("name", "another name: the published datasets are called so")
    folders = _folders(top)
    if ("doses" in top.values) != ("dose" in folders):
        raise top.wrong("doses", "a list exactly where `folders` has {dose}")
    inputs = _inputs(top)
    target = _image_table(top, "target", ("name", "unit"))
    tables = inputs | {"QPI": target}
    contrasts = {
        role: Contrast(
            _pattern(table, "variable", folders),
            table.text(
                "name", _PLACEHOLDER.sub("", table.text("variable")).strip(" _-") or "image"
            ),
            table.text("unit", "") if role == "QPI" else "",
            table.number("scale", 1.0),
        )
        for role, table in tables.items()
    }
    _refuse_same_names(inputs, contrasts)
    if "truth" in top.values:
        truth = tables["QPI_TRUE"] = _image_table(top, "truth")
        shown = contrasts["QPI"]
        contrasts["QPI_TRUE"] = Contrast(
            _pattern(truth, "variable", folders),
            shown.name,
            shown.unit,
            truth.number("scale", shown.scale),
        )
    said = Description(
        name=top.text("name"),
        class_term=top.text("class_term", "class"),
        batches=top.names("batches"),
        classes=top.names("classes"),
        doses=top.names("doses") if "dose" in folders else (),
        field_of_view_um=top.number("field_of_view_um"),
        folders=folders,
        splits=_splits(top),
        contrasts=contrasts,
        files={role: _file(table, folders) for role, table in tables.items()},
        wavelength_um=top.number("wavelength_um") if "wavelength_um" in top.values else None,
        refraction_increment_um3_per_pg=top.number(
            "refraction_increment_um3_per_pg", REFRACTION_INCREMENT
        ),
    )
    _refuse_same_images(said, tables)
    _refuse_too_many(said, path)
    _refuse_same_labels(said, path)
    return said


class _Table:
    """One table of the file; each value is checked when it is taken."""

    def __init__(self, path, values, required, optional=(), name=""):
        self.path, self.name, self.values = path, name, values
        where = f"in {name}" if name else "at the top"
        known = (*required, *optional)
        for key in values:
            if key not in known:
                lost = name and key in _TOP_KEYS + _MORE_TOP_KEYS
                hint = "move it above the first [table]" if lost else "check its spelling"
                raise DatasetError(
                    f"{path} has an unknown key {key!r} {where}. Expected some of "
                    f"{', '.join(known)}; {hint}."
                )
        for key in required:
            if key not in values:
                there = ", ".join(values) or "nothing"
                raise DatasetError(
                    f"{path} has no key {key!r} {where}, only {there}. Expected all of "
                    f"{', '.join(required)}; add it."
                )

    def wrong(self, key, expected, found=None):
        """Return the error for a value that is not what it should be."""
        found = repr(self.values.get(key, "missing") if found is None else found)
        found = found if len(found) <= 200 else f"{found[:200]} ..."
        where = f"{self.name} {key}".strip()
        return DatasetError(f"{self.path}: {where} is {found}. Expected {expected}.")

    def text(self, key, default=None):
        value = self.values.get(key, default)
        one_line = isinstance(value, str) and value.isprintable() and "$" not in value
        if not one_line or not (value.strip() or value == default):
            raise self.wrong(key, "a text in quotes, on one line and without $")
        return value

    def number(self, key, default=None):
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not SMALLEST <= value <= LARGEST:
            raise self.wrong(key, f"a number above zero, from {SMALLEST:g} to {LARGEST:g}")
        return float(value)

    def names(self, key):
        value = self.values[key]
        if not isinstance(value, list) or not value:
            raise self.wrong(key, 'a list of names, such as ["one", "two"]')
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
        raise DatasetError(
            f"{path} cannot be read ({error}). Expected a text file in UTF-8; save it as such."
        ) from error
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


def _is_name(text):
    return (
        isinstance(text, str)
        and text == text.strip() != ""
        and text.isprintable()
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
    expected = (
        '"{batch}/{class}/{split}" or, with doses, "{class}/{batch}/{dose}/{split}": each of '
        "these once, in the order of your folders, {split} last"
    )
    parts = [_PLACEHOLDER.fullmatch(part) for part in top.text("folders").split("/")]
    places = tuple(part[1] if part else "" for part in parts)
    with_dose, without = {"batch", "class", "dose", "split"}, {"batch", "class", "split"}
    once = len(places) == len(set(places))
    if set(places) not in (with_dose, without) or not once or places[-1] != "split":
        raise top.wrong("folders", expected)
    return places


def _splits(top):
    own = top.values.get("splits", {})
    if not isinstance(own, dict):
        raise top.wrong("splits", 'a table, such as {Valid = "Val"}')
    table = _Table(top.path, own, (), SPLITS, "splits")
    for split, name in own.items():
        if not _is_name(name):
            raise table.wrong(split, _NAME)
    names = {split: own.get(split, split) for split in SPLITS}
    _refuse_repeated(top, "splits", list(names.values()))
    return names


def _inputs(top):
    """Return {role: table} of what goes in, the roles being "BF", "BF2", "BF3" and so on."""
    tables = top.values["input"]
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise top.wrong("input", "one or several tables, each under [[input]] in double brackets")
    return {
        f"BF{number}" if number > 1 else "BF": _Table(
            top.path, values, ("file", "variable"), ("name", "scale"), f"[[input]] number {number}"
        )
        for number, values in enumerate(tables, 1)
    }


def _image_table(top, key, more=()):
    values = top.values[key]
    if not isinstance(values, dict):
        raise top.wrong(key, f"one table, under [{key}]")
    return _Table(top.path, values, ("file", "variable"), (*more, "scale"), f"[{key}]")


def _pattern(table, key, folders):
    """Return a text, its placeholders checked."""
    pattern = table.text(key)
    for place in _PLACEHOLDER.findall(pattern):
        if place not in folders:
            known = ", ".join(f"{{{place}}}" for place in folders)
            raise table.wrong(key, f"no other placeholders than those of `folders`: {known}")
    return pattern


def _file(table, folders):
    """Return the name of a file, with placeholders."""
    pattern = _pattern(table, "file", folders)
    filled = _PLACEHOLDER.sub("x", pattern)
    if not _is_name(filled) or not filled.casefold().endswith(".mat"):
        raise table.wrong(
            "file",
            f"the name of a .mat file in the split's folder, {_NAME}; placeholders are filled in",
        )
    return pattern


def _refuse_same_names(inputs, contrasts):
    names = [contrasts[role].name for role in inputs]
    for number, (table, name) in enumerate(zip(inputs.values(), names, strict=True)):
        if name in names[:number]:
            raise table.wrong("name", "another name than the inputs above it have", name)


def _refuse_same_images(said, tables):
    """Refuse a target that is an input, and the like: nothing would be left to learn."""
    seen = {}
    for role, table in tables.items():
        source = (folded(said.files[role]), said.contrasts[role].variable)
        if source in seen:
            raise table.wrong(
                "file", f"another file or variable than in {seen[source]}", " / ".join(source)
            )
        seen[source] = table.name


def _refuse_too_many(said, path):
    """Refuse lists of which the product would take all memory."""
    lengths = [len(names) for names in (said.batches, said.classes, said.doses) if names]
    if math.prod(lengths) > MOST_GROUPS:
        raise DatasetError(
            f"{path} describes {' x '.join(f'{length:,}' for length in lengths)} groups. Expected "
            f"at most {MOST_GROUPS:,}; list the names of one dataset only, or divide it."
        )


def _refuse_same_labels(said, path):
    """Refuse groups of which files of results, named by batch, class and dose, cannot be called."""
    seen = {}
    for group in said.groups():
        parts = [name for name in group if name is not None]
        joined = "_".join(parts)
        if len(joined.encode()) > LONGEST_GROUP_NAME:
            raise DatasetError(
                f"{path}: the group {'/'.join(parts)} has a name of {len(joined.encode())} bytes. "
                f"Expected at most {LONGEST_GROUP_NAME}, since files of results are called by it; "
                "take shorter names."
            )
        other = seen.setdefault(folded(joined), parts)
        if other is not parts:
            raise DatasetError(
                f"{path}: the groups {'/'.join(other)} and {'/'.join(parts)} are both {joined} "
                "when joined by _, as files of results are called. Expected names that stay "
                "apart; rename a folder."
            )
