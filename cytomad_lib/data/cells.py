"""Cell images with their labels: load them, select, resize, stream, and check a dataset.

`load_cells` puts a split into memory; `CellFiles` reads the same cells a minibatch at a time.
Brightfield and phase images are matched by position in their two files, so both refuse a group
whose files do not pair up, and never return fewer cells than were asked.

    >>> from cytomad_lib.data.cells import CellFiles, check_dataset, load_cells
    >>> lung = "Dataset/7LungCancerDataset"
    >>> print(check_dataset(lung))                                     # doctest: +SKIP
    >>> cells = load_cells(lung, "Train", cells_per_group=10)          # doctest: +SKIP
    >>> cells.brightfield.shape, cells.classes                         # doctest: +SKIP
    >>> files = CellFiles(lung, "Train", image_size=128)               # doctest: +SKIP
    >>> for minibatch in files.minibatches(batch_size=10, seed=0): ... # doctest: +SKIP
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import mode

import numpy as np
import pandas as pd
from skimage.transform import resize
from tqdm import tqdm

from cytomad_lib.data.description import DESCRIPTION, REFRACTION_INCREMENT
from cytomad_lib.data.errors import DatasetError, MatFileError
from cytomad_lib.data.layouts import SPLITS, Layout, find_layout
from cytomad_lib.data.matfiles import inspect_mat, read_mat

CELLS_AT_ONCE = 128  # read and resized together: 8 MB of 128 x 128 pixels

# Phase of a cell in radians lies well inside this; degrees or nanometres do not.
PLAUSIBLE_PHASE = (-20.0, 60.0)

# Networks learn badly from values much larger than 1: what a described dataset should be scaled to.
LARGEST_VALUE = 100.0


# --- Images in memory ------------------------------------------------------------------------


class _Labelled:
    """What follows from a table of labels: batches and classes, as names and as codes."""

    @property
    def batches(self):
        """All batches of the layout, in its order; `batch_codes` counts in it."""
        return tuple(self.labels["batch"].cat.categories)

    @property
    def classes(self):
        """All classes of the layout, in its order; `class_codes` counts in it."""
        return tuple(self.labels["class_name"].cat.categories)

    @property
    def batch_codes(self):
        """Batch of each cell as its place in `batches`: int32 array (cells,)."""
        return self.labels["batch"].cat.codes.to_numpy(np.int32)

    @property
    def class_codes(self):
        """Class of each cell as its place in `classes`: int32 array (cells,)."""
        return self.labels["class_name"].cat.codes.to_numpy(np.int32)

    def in_slices(self, at_once=500):
        """Give the cells in their order, `at_once` at a time, each slice as `CellImages`.

        For what needs all cells, but not together: of files, only one slice is in memory.
        """
        for start in range(0, len(self), at_once):
            yield self.read(np.arange(start, min(start + at_once, len(self))))


@dataclass(eq=False)
class CellImages(_Labelled):
    """Brightfield and phase images of the same cells, with their labels.

    Parameters
    ----------
    brightfield : float32 array (cells, height, width, channels)
        What goes in: intensity (arbitrary units). One channel in the published datasets; in a
        described one as many as it has inputs.
    qpi : float32 array (cells, height, width, 1)
        What comes out: quantitative phase (radians), unless the dataset is described otherwise.
    labels : DataFrame
        One row per cell: categorical `batch` and `class_name` (and `dose` where there is one),
        and the integer `cell`, the cell's place in its file. The categories are all those of
        the dataset's layout, in its order, whichever cells are here.
    pixel_size_um : float
        Side of a pixel in micrometres.
    truth : float32 array (cells, height, width, 1), optional
        Phase without batch effect (radians), known for simulated cells only.
    wavelength_um : float, optional
        Of the light, micrometres; dry mass needs it.
    refraction_increment : float
        Of dry matter, µm³ per pg.

    Raises
    ------
    DatasetError
        If the images and labels do not fit each other.
    """

    brightfield: np.ndarray
    qpi: np.ndarray
    labels: pd.DataFrame
    pixel_size_um: float
    truth: np.ndarray | None = None
    wavelength_um: float | None = None
    refraction_increment: float = REFRACTION_INCREMENT

    def __post_init__(self):
        """Check that images and labels fit each other."""
        images = {"brightfield": self.brightfield, "qpi": self.qpi, "truth": self.truth}
        if self.truth is None:
            del images["truth"]
        for name, array in images.items():
            several = name == "brightfield"  # channels are allowed
            fits = array.ndim == 4 and (array.shape[3] == 1 or several and array.shape[3] > 1)
            if array.dtype != np.float32 or not fits:
                raise DatasetError(
                    f"{name} is {array.dtype} {array.shape}. Expected float32 (cells, height, "
                    f"width, 1){' or more channels' if several else ''}; convert or reshape it."
                )
            if array.shape[:3] != self.brightfield.shape[:3]:
                raise DatasetError(
                    f"{name} has shape {array.shape}. Expected {(*self.brightfield.shape[:3], 1)} "
                    "as brightfield; use the same cells for both."
                )
        if len(self.labels) != len(self.brightfield):
            raise DatasetError(
                f"labels has {len(self.labels)} rows. Expected one for each of the "
                f"{len(self.brightfield)} cells."
            )
        for column in ("batch", "class_name"):
            values = self.labels.get(column)
            if values is None or values.dtype != "category" or values.isna().any():
                raise DatasetError(
                    f"labels has no complete categorical column '{column}'. "
                    "Expected a category in every row."
                )
        if not pd.api.types.is_integer_dtype(self.labels.get("cell", pd.Series(dtype=object))):
            raise DatasetError(
                "labels has no integer column 'cell'. Expected each cell's place in its file."
            )
        if not self.pixel_size_um > 0:
            raise DatasetError(
                f"pixel_size_um is {self.pixel_size_um}. Expected a size above zero."
            )

    def __len__(self):
        """Count the cells."""
        return len(self.labels)

    @property
    def channels(self):
        """Number of images per cell that go in."""
        return self.brightfield.shape[-1]

    def select(self, index_or_mask):
        """Return the cells given by numbers (in any order), a slice or a boolean mask."""
        return CellImages(
            self.brightfield[index_or_mask],
            self.qpi[index_or_mask],
            self.labels.iloc[index_or_mask].reset_index(drop=True),
            self.pixel_size_um,
            None if self.truth is None else self.truth[index_or_mask],
            self.wavelength_um,
            self.refraction_increment,
        )

    def read(self, indices):
        """Return the cells given by numbers; `CellFiles` has the same, from disk."""
        return self.select(indices)


def check_trainable(labels):
    """Refuse cells from which batch effects cannot be learned.

    Parameters
    ----------
    labels : DataFrame
        With the columns `batch` and `class_name`.

    Raises
    ------
    DatasetError
        If there are fewer than two batches or two classes.
    """
    for column, what in (("batch", "batches"), ("class_name", "classes")):
        present = list(labels[column].unique())
        if len(present) < 2:
            found = f"only {present[0]}" if present else "none"
            raise DatasetError(
                f"The cells are of too few {what}: {found}. Batch removal needs at least two "
                f"{what}; load more groups, or use the pretraining alone, which needs one."
            )


# --- Resizing --------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _cubic_weights(old, new):
    """Matrix (new, old) that resizes one axis: resizing is linear, so resize an identity."""
    weights = resize(
        np.eye(old), (new, old), order=3, mode="reflect", anti_aliasing=new < old, clip=False
    )
    # A spline's weights fade towards 1e-38, where processors compute twenty times slower.
    weights[np.abs(weights) < 1e-9] = 0
    return weights.astype(np.float32)


def resize_images(images, size):
    """Resize square or oblong images to `size` x `size` by cubic splines.

    Shrinking blurs first, so that detail too fine for the new pixels does not alias.

    Parameters
    ----------
    images : float32 array (cells, height, width)
    size : int
        New height and width in pixels.

    Returns
    -------
    float32 array (cells, size, size)
    """
    _, height, width = images.shape
    if (height, width) == (size, size):
        return images
    # tensordot makes one large product of each step; a product per image is slow on busy cores.
    wide = np.tensordot(images, _cubic_weights(width, size), (2, 1))
    return np.tensordot(wide, _cubic_weights(height, size), (1, 1)).transpose(0, 2, 1)


# --- Files on disk ---------------------------------------------------------------------------


def _folder_problems(layout, root):
    """Folders that are not in the layout, or described and not there; one sentence each."""
    said = layout.described
    folders, splits = [group.folder for group in layout.groups], SPLITS
    if said:
        folders, splits = [said.folder(*names) for names in said.groups()], said.splits.values()
    allowed = {}  # folder -> names of the folders that may be in it
    for folder in folders:
        parts = folder.split("/")
        for depth, name in enumerate(parts):
            allowed.setdefault("/".join(parts[:depth]), {})[name] = None
        allowed[folder] = dict.fromkeys(splits)
    problems = _missing_names(layout, root)
    for parent, names in allowed.items():
        if not (root / parent).is_dir():
            continue
        for found in sorted((root / parent).iterdir()):
            hidden = found.name.startswith((".", "__"))  # left by Jupyter, git or macOS
            if found.is_dir() and not hidden and found.name not in names:
                problems.append(
                    f"{found} is not a folder of the {layout.name} dataset. Expected in "
                    f"{root / parent}: {', '.join(names)}; rename or move it."
                )
    return problems


def _missing_names(layout, root):
    """Names that a description lists, and of which no folder is there; one sentence each."""
    if not layout.described:
        return []  # a part of a published dataset will do
    problems = []
    for place, key in enumerate(("batches", "classes", "doses")):
        there = {(group.batch, group.class_name, group.dose)[place] for group in layout.groups}
        for name in getattr(layout, key):
            if name not in there:
                own = next(names for names in layout.described.groups() if names[place] == name)
                problems.append(
                    f"{root / DESCRIPTION}: {key} has {name!r}, of which there is no folder with "
                    f"cells. Expected one such as {root / layout.described.folder(*own)} with its "
                    "splits; add it, or take the name out of the list."
                )
    return problems


def _kinds(layout, with_truth=False):
    """Return the kinds of file that belong together, what goes in first."""
    if with_truth and "QPI_TRUE" not in layout.contrasts:
        raise DatasetError(
            f"The {layout.name} dataset has no truth. Expected a table [truth] in its "
            f"{DESCRIPTION}; add it, or do not ask for the truth."
        )
    return (*layout.inputs, "QPI", *(["QPI_TRUE"] if with_truth else []))


def _splits_present(layout, root, group):
    """Return the splits of which this group has a file, other than of the truth."""
    return [
        split
        for split in SPLITS
        if any((root / group.file(split, kind)).exists() for kind in _kinds(layout))
    ]


def _inspect_files(layout, root, group, split, with_truth):
    """Check that the files of one group and split pair up, cell by cell.

    Returns their infos by kind, and the errors found: a loader raises the first, a check of the
    dataset lists them all.
    """
    infos, errors = {}, []
    paths = {kind: root / group.file(split, kind) for kind in _kinds(layout, with_truth)}
    for kind, path in paths.items():
        try:
            if not path.exists():
                beside = ", ".join(other.name for other in paths.values() if other.exists())
                raise DatasetError(
                    f"{path} is missing; beside it there is {beside}. Expected one file of each "
                    "kind for the same cells; add it, or remove the others or do not ask for them."
                )
            infos[kind] = inspect_mat(path, layout.contrasts[kind].variable)
        except (DatasetError, MatFileError) as error:
            errors.append(error)
    for first, other in pairwise(infos.values()):
        if first.shape != other.shape:
            errors.append(
                DatasetError(
                    f"{first.path} has {_shape_text(first)}, but {other.path.name} beside it has "
                    f"{_shape_text(other)}. Expected the same cells in both; save both files "
                    "again from the same cells."
                )
            )
    for info in infos.values():
        if info.shape[0] != info.shape[1]:
            errors.append(
                DatasetError(
                    f"{info.path} has {_shape_text(info)}. Expected square images; "
                    "crop them to squares."
                )
            )
    return infos, errors


def _shape_text(info):
    height, width, cells = info.shape
    return f"{cells} cells of {height} x {width} pixels"


def _missing_split_text(layout, root, group, split, splits):
    first, *others = (root / group.file(split, kind) for kind in _kinds(layout))
    names = ", ".join(path.name for path in others)
    return (
        f"{root / group.folder} has no {split} files, only {', '.join(splits)}. "
        f"Expected {first} and beside it {names}; add them, or remove the group."
    )


def _no_files_text(root, layout, split):
    return (
        f"{root} has no .mat files of the groups asked. Expected files such as "
        f"{root / layout.groups[0].file(split, 'BF')}; check the folder, or ask for other groups."
    )


def _size_errors(infos):
    """Return an error for each file whose images have not the size of most."""
    infos = list(infos)
    sizes = [info.shape[:2] for info in infos]
    usual = infos[sizes.index(mode(sizes))] if infos else None
    return [
        DatasetError(
            f"{info.path} has {_shape_text(info)}, but {usual.path} has {_shape_text(usual)}. "
            "Expected one size in the whole dataset, since all images show the same field of "
            "view; save them all in one size."
        )
        for info in infos
        if info.shape[:2] != usual.shape[:2]
    ]


def _wanted_groups(layout, batches, classes):
    """Return the groups of the layout that the caller asks for."""
    for asked, known, what in (
        (batches, layout.batches, "batch"),
        (classes, layout.classes, layout.class_term),
    ):
        if isinstance(asked, str):
            raise DatasetError(f"{asked!r} is one name. Expected a list of names: [{asked!r}].")
        for name in asked or ():
            if name not in known:
                raise DatasetError(
                    f"{name!r} is no {what} of the {layout.name} dataset. "
                    f"Expected some of {', '.join(known)}."
                )
    return [
        group
        for group in layout.groups
        if (batches is None or group.batch in batches)
        and (classes is None or group.class_name in classes)
    ]


def _check_number(name, value):
    if value is not None and (not isinstance(value, int | np.integer) or value < 1):
        raise DatasetError(f"{name} is {value!r}. Expected a whole number above zero, or None.")


class CellFiles(_Labelled):
    """Cells of one split, read from their files only when asked for.

    A dataset may have only some of its layout's groups. Of v7.3 files only what is asked for is
    read, fastest where cells lie side by side: `models.feeding` trains from disk that way. A v5
    file is read as a whole each time, see `check_streams`.

    Parameters
    ----------
    folder : path
        The dataset's folder, or the one above it.
    split : "Train", "Valid" or "Test"
    cells_per_group : int, optional
        The first so many cells of each group; all there are by default.
    image_size : int, optional
        Resize to this height and width in pixels; as stored by default.
    batches, classes : sequence of str, optional
        Only these; all by default.
    with_truth : bool
        Also read the batch-free phase (QPI_TRUE files of simulated data).

    Attributes
    ----------
    labels : DataFrame
        As in `CellImages`, for all cells, in the order of the layout's groups.
    layout : Layout
    root : pathlib.Path
    image_size : int
    pixel_size_um : float

    Raises
    ------
    DatasetError
        If the folders, pairs, sizes or counts are not what was asked.
    MatFileError
        If a file cannot be read.
    """

    def __init__(
        self,
        folder,
        split,
        cells_per_group=None,
        image_size=None,
        batches=None,
        classes=None,
        with_truth=False,
    ):
        if split not in SPLITS:
            raise DatasetError(f"split is {split!r}. Expected one of {', '.join(SPLITS)}.")
        _check_number("cells_per_group", cells_per_group)
        _check_number("image_size", image_size)
        self.layout, self.root = find_layout(folder)
        self.split = split
        self.with_truth = with_truth
        for problem in _folder_problems(self.layout, self.root):
            raise DatasetError(problem)

        self._groups = self._find_groups(batches, classes)
        self._infos = []
        for group in self._groups:
            infos, errors = _inspect_files(self.layout, self.root, group, split, with_truth)
            for error in errors:
                raise error
            self._infos.append(infos)
        for error in _size_errors(infos["BF"] for infos in self._infos):
            raise error
        self.image_size = image_size or self._infos[0]["BF"].shape[0]
        self.pixel_size_um = self.layout.field_of_view_um / self.image_size
        self.labels, self._group_of_cell = self._make_labels(cells_per_group)
        self._cell_in_file = self.labels["cell"].to_numpy()

    def __len__(self):
        """Count the cells."""
        return len(self.labels)

    @property
    def channels(self):
        """Number of images per cell that go in."""
        return len(self.layout.inputs)

    @property
    def file_codes(self):
        """File of each cell: int array (cells,). Cells of one file are neighbours, in its order."""
        return self._group_of_cell

    def check_streams(self):
        """Refuse files of which a part cannot be read without the rest.

        Raises
        ------
        DatasetError
            Names the first MATLAB v5 file.
        """
        for infos in self._infos:
            for info in infos.values():
                if info.version == "5":
                    raise DatasetError(
                        f"{info.path} is a MATLAB v5 file, which can only be read as a whole. "
                        "Expected v7.3 to read cells from disk a few at a time; save the dataset "
                        "again with save(..., '-v7.3') or "
                        "cytomad_lib.data.matfiles.write_mat(path, {name: array}), or load it "
                        "into memory."
                    )

    def read(self, indices, progress=False):
        """Read cells.

        Parameters
        ----------
        indices : array of int, slice or boolean mask
            Rows of `labels`, in any order; the cells come back in this order.
        progress : bool
            Show a progress bar.

        Returns
        -------
        CellImages

        Raises
        ------
        MatFileError
            If a file cannot be read or holds NaN.
        """
        indices = np.arange(len(self))[indices]
        shape = (len(indices), self.image_size, self.image_size)
        brightfield = np.empty((*shape, self.channels), np.float32)
        kinds = _kinds(self.layout, self.with_truth)
        # Where the images of each kind go: the inputs side by side.
        places = {kind: brightfield[..., number] for number, kind in enumerate(self.layout.inputs)}
        for kind in kinds[self.channels :]:
            places[kind] = np.empty(shape, np.float32)
        with tqdm(total=len(indices), disable=not progress, unit="cell") as bar:
            for rows in self._read_together(indices):
                for kind, images in places.items():
                    stored = self._read_as_stored(kind, indices[rows])
                    images[rows] = resize_images(stored, self.image_size)
                bar.update(len(rows))
        return CellImages(
            brightfield,
            places["QPI"][..., None],
            self.labels.iloc[indices].reset_index(drop=True),
            self.pixel_size_um,
            places["QPI_TRUE"][..., None] if self.with_truth else None,
            self.layout.wavelength_um,
            self.layout.refraction_increment_um3_per_pg,
        )

    def minibatches(self, batch_size, seed):
        """Go once through all cells in shuffled order: an iterator of `CellImages`.

        Every cell comes exactly once; the last minibatch may be smaller. The order depends on
        `seed` alone: give each epoch its own. Each cell is looked up by itself, which is slow: to
        train, take `Minibatches.of_cells`, which reads neighbours together.
        """
        _check_number("batch_size", batch_size)
        order = np.random.default_rng(seed).permutation(len(self))
        starts = range(0, len(self), batch_size)
        return (self.read(order[start : start + batch_size]) for start in starts)

    def _find_groups(self, batches, classes):
        """Return the groups that are on disk; each must have the split."""
        wanted = _wanted_groups(self.layout, batches, classes)
        there = [group for group in wanted if _splits_present(self.layout, self.root, group)]
        if not there:
            raise DatasetError(_no_files_text(self.root, self.layout, self.split))
        found = {group.batch for group in there} | {group.class_name for group in there}
        for name in (*(batches or ()), *(classes or ())):
            if name not in found:
                raise DatasetError(
                    f"{self.root} has no files of {name}. Expected a group of each batch and "
                    f"{self.layout.class_term} asked for; leave {name} out."
                )
        for group in there:
            splits = _splits_present(self.layout, self.root, group)
            if self.split not in splits:
                missing = _missing_split_text(self.layout, self.root, group, self.split, splits)
                raise DatasetError(missing)
        return there

    def _make_labels(self, cells_per_group):
        counts = []
        for infos in self._infos:
            count = infos["BF"].shape[2]
            if cells_per_group is not None and cells_per_group > count:
                raise DatasetError(
                    f"{infos['BF'].path} has {count} cells. Expected the {cells_per_group} asked "
                    f"by cells_per_group; ask for {count} or fewer, or None for all there are."
                )
            counts.append(cells_per_group or count)
        group_of_cell = np.repeat(np.arange(len(counts)), counts)
        columns = {"batch": self.layout.batches, "class_name": self.layout.classes}
        if self.layout.doses:
            columns["dose"] = self.layout.doses
        labels = pd.DataFrame(
            {
                column: pd.Categorical(
                    np.repeat([getattr(group, column) for group in self._groups], counts),
                    categories=names,
                )
                for column, names in columns.items()
            }
        )
        labels["cell"] = np.concatenate([np.arange(count) for count in counts])
        return labels, group_of_cell

    def _read_together(self, indices):
        """Give the rows of `indices` in the order of the files: some at a time, all of one file."""
        order = np.argsort(indices, kind="stable")
        files = self._group_of_cell[indices[order]]
        for rows in np.split(order, np.flatnonzero(np.diff(files)) + 1):
            if not len(rows):
                return
            versions = [info.version for info in self._infos_of(indices[rows]).values()]
            # A v5 file is read as a whole each time; MATLAB allows it 2 GB.
            at_once = len(rows) if "5" in versions else CELLS_AT_ONCE
            for start in range(0, len(rows), at_once):
                yield rows[start : start + at_once]

    def _infos_of(self, indices):
        """Return what is known of the files of these cells, all of one group."""
        return self._infos[self._group_of_cell[indices[0]]]

    def _read_as_stored(self, kind, indices):
        """Read the images of these cells, all of one group and not yet resized."""
        info = self._infos_of(indices)[kind]
        images = read_mat(info.path, info.variable, self._cell_in_file[indices])
        images *= self.layout.contrasts[kind].scale
        return images


def load_cells(
    folder,
    split,
    cells_per_group=None,
    image_size=None,
    batches=None,
    classes=None,
    with_truth=False,
    progress=False,
):
    """Load the cells of one split into memory.

    Parameters
    ----------
    folder, split, cells_per_group, image_size, batches, classes, with_truth
        As in `CellFiles`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    CellImages

    Raises
    ------
    DatasetError, MatFileError
        As `CellFiles`, and if a pixel is NaN or infinite.
    """
    files = CellFiles(folder, split, cells_per_group, image_size, batches, classes, with_truth)
    return files.read(np.arange(len(files)), progress=progress)


# --- Checking a dataset ----------------------------------------------------------------------

TABLE_COLUMNS = ["group", "batch", "class_name", "dose", "split", "cells", "height", "width"]
TABLE_COLUMNS += ["version", "truth", "status"]


@dataclass(eq=False)
class DatasetReport:
    """All that `check_dataset` found.

    Attributes
    ----------
    table : DataFrame
        One row per group and split that is there: labels, cells, height, width, version of the
        files, truth (whether there is a QPI_TRUE file), status ("ok" or the problems).
    problems : list of str
        What must be put right before the dataset can be used.
    notes : list of str
        What is worth knowing.
    """

    layout: Layout
    root: Path
    table: pd.DataFrame
    problems: list[str]
    notes: list[str]

    @property
    def ok(self):
        """Whether there is no problem."""
        return not self.problems

    def __str__(self):
        """Return the report as text."""
        lines = [f"{self.layout.name} dataset in {self.root}", self.table.to_string(index=False)]
        lines += [f"Problem: {text}" for text in self.problems]
        lines += [f"Note: {text}" for text in self.notes]
        return "\n".join(lines)


def check_dataset(folder, progress=False):
    """Check a whole dataset, reading every pixel, and list all problems instead of the first.

    Parameters
    ----------
    folder : path
        The dataset's folder, or the one above it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DatasetReport

    Raises
    ------
    DatasetError
        If the folder holds no dataset at all.
    """
    layout, root = find_layout(folder)
    problems = _folder_problems(layout, root)
    findings = {}  # what is worth a note -> files
    splits_of = {group: _splits_present(layout, root, group) for group in layout.groups}
    splits_of = {group: splits for group, splits in splits_of.items() if splits}
    splits_used = [split for split in SPLITS if any(split in s for s in splits_of.values())]
    rows, brightfields = [], []
    for group, splits in tqdm(splits_of.items(), disable=not progress, unit="group"):
        for split in splits_used:
            if split not in splits:
                problems.append(_missing_split_text(layout, root, group, split, splits))
                continue
            row, infos, found = _check_files(layout, root, group, split, findings)
            rows.append(row)
            problems += found
            if "BF" in infos:
                brightfields.append(infos["BF"])
    problems += [str(error) for error in _size_errors(brightfields)]
    table = pd.DataFrame(rows, columns=TABLE_COLUMNS)
    table = table.astype({"cells": "Int64", "height": "Int64", "width": "Int64"})
    if not layout.doses:
        table = table.drop(columns="dose")
    if not splits_of:
        problems.append(_no_files_text(root, layout, SPLITS[0]))
        return DatasetReport(layout, root, table, problems, [])
    notes = _dataset_notes(layout, table) + [
        f"{len(paths)} file(s) {finding}, first {paths[0]}." for finding, paths in findings.items()
    ]
    return DatasetReport(layout, root, table, problems, notes)


def _check_files(layout, root, group, split, findings):
    """Check one group and split: its row of the table, its infos, its problems."""
    known = "QPI_TRUE" in layout.contrasts
    truth = known and (root / group.file(split, "QPI_TRUE")).exists()
    infos, errors = _inspect_files(layout, root, group, split, truth)
    problems = [str(error) for error in errors]
    for kind, info in infos.items():
        try:
            for finding in _scan_pixels(layout, kind, info):
                findings.setdefault(finding, []).append(info.path)
        except MatFileError as error:
            problems.append(str(error))
    row = {
        "group": group.name,
        "batch": group.batch,
        "class_name": group.class_name,
        "dose": group.dose,
        "split": split,
        "version": "/".join(sorted({info.version for info in infos.values()})),
        "truth": truth,
        "status": "; ".join(problems) or "ok",
    }
    if infos:
        shape = next(iter(infos.values())).shape
        row |= dict(zip(("height", "width", "cells"), shape, strict=True))
    return row, infos, problems


def _scan_pixels(layout, kind, info):
    """Read all pixels, some cells at a time; return what is implausible about them."""
    found = set()
    contrast, goes_in = layout.contrasts[kind], kind in layout.inputs
    n_cells = info.shape[2]
    at_once = CELLS_AT_ONCE if info.version == "7.3" else n_cells
    for start in range(0, n_cells, at_once):
        images = read_mat(info.path, info.variable, slice(start, start + at_once))
        images *= contrast.scale
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        if goes_in and (low == high).any():
            name = contrast.name if layout.described else "brightfield"
            found.add(f"have a {name} image with the same value everywhere")
        if contrast.unit == "rad":
            if low.min() < PLAUSIBLE_PHASE[0] or high.max() > PLAUSIBLE_PHASE[1]:
                found.add(
                    f"have phases outside {PLAUSIBLE_PHASE[0]:g} to {PLAUSIBLE_PHASE[1]:g}, which "
                    "does not look like radians"
                )
        elif layout.described and max(-low.min(), high.max()) > LARGEST_VALUE:
            found.add(
                f"have {contrast.name} values beyond {LARGEST_VALUE:g}, from which networks learn "
                f"badly; give a scale in {DESCRIPTION} that brings them to the order of 1"
            )
    if info.version == "5":
        found.add("are MATLAB v5, so streaming reads them as a whole (v7.3 is faster)")
    return found


def _dataset_notes(layout, table):
    """Say which groups, splits and kinds of file are there."""
    notes = []
    if layout.described:
        notes.append(
            f"Goes in: {', '.join(layout.images['input'])}. Comes out: {layout.images['target']}."
        )
    n_groups = table["group"].nunique()
    if n_groups < len(layout.groups):  # of a described dataset: folders without files
        notes.append(f"{n_groups} of the {len(layout.groups)} groups of the layout are there.")
    missing = [split for split in SPLITS if split not in set(table["split"])]
    if missing:
        notes.append(f"No group has a {' or '.join(missing)} split.")
    if table["truth"].any():
        notes.append(
            f"Batch-free truth (QPI_TRUE) is there for {table['truth'].sum()} of the {len(table)} "
            f"groups and splits{'' if layout.described else ': these are simulated cells'}."
        )
    try:
        check_trainable(table)
    except DatasetError as error:
        notes.append(str(error))
    return notes
