"""Cell images with their labels: load them, select, resize, stream, and check a dataset.

`load_cells` puts a split into memory; `CellFiles` reads the same cells a minibatch at a time.
Brightfield and phase images are matched by position in their two files, so both refuse a group
whose files do not pair up, and never return fewer cells than were asked. Cells to be predicted need
no phase image: `with_target=False` takes brightfield alone.

    >>> from cytomad_lib.data.cells import CellFiles, check_dataset, load_cells
    >>> lung = "Dataset/7LungCancerDataset"
    >>> print(check_dataset(lung))                                     # doctest: +SKIP
    >>> cells = load_cells(lung, "Train", cells_per_group=10)          # doctest: +SKIP
    >>> cells.brightfield.shape, cells.classes                         # doctest: +SKIP
    >>> files = CellFiles(lung, "Train", image_size=128)               # doctest: +SKIP
    >>> for minibatch in files.minibatches(batch_size=10, seed=0): ... # doctest: +SKIP
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import mode

import numpy as np
import pandas as pd
from skimage.transform import resize
from tqdm import tqdm

from cytomad_lib.data.description import DESCRIPTION, folded
from cytomad_lib.data.errors import DatasetError, MatFileError
from cytomad_lib.data.layouts import SPLITS, Layout, check_split, find_layout, find_path
from cytomad_lib.data.matfiles import inspect_mat, read_mat

CELLS_AT_ONCE = 128  # read and resized together: 8 MB of 128 x 128 pixels

# Phase of a cell in radians lies well inside this; degrees or nanometres do not.
PLAUSIBLE_PHASE = (-20.0, 60.0)

# Networks learn badly from values far from 1: the largest of a described dataset should lie here.
LARGEST_VALUES = (0.01, 100.0)
CELLS_LOOKED_AT = 20  # of each file, before a training

LARGEST_SIZE = 2048  # pixels; a minibatch of such images already takes all memory of a GPU


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
    qpi : float32 array (cells, height, width, 1) or None
        What comes out: quantitative phase (radians), unless the dataset is described otherwise.
        None where it was not measured: such cells can be predicted, not trained on.
    labels : DataFrame
        One row per cell: categorical `batch` and `class_name` (and `dose` where there is one),
        and the integer `cell`, the cell's place in its file. The categories are all those of
        the dataset's layout, in its order, whichever cells are here.
    pixel_size_um : float
        Side of a pixel in micrometres.
    truth : float32 array (cells, height, width, 1), optional
        Phase without batch effect (radians), known for simulated cells only.

    Raises
    ------
    DatasetError
        If the images and labels do not fit each other.
    """

    brightfield: np.ndarray
    qpi: np.ndarray | None
    labels: pd.DataFrame
    pixel_size_um: float
    truth: np.ndarray | None = None

    def __post_init__(self):
        """Check that images and labels fit each other."""
        images = {"brightfield": self.brightfield, "qpi": self.qpi, "truth": self.truth}
        for name, array in images.items():
            if array is None and name != "brightfield":
                continue
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
            None if self.qpi is None else self.qpi[index_or_mask],
            self.labels.iloc[index_or_mask].reset_index(drop=True),
            self.pixel_size_um,
            None if self.truth is None else self.truth[index_or_mask],
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
                f"{what}; load more groups, or use the pretraining alone (--recipe none), which "
                "needs one."
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


def _compare_folders(layout, root):
    """Compare the folders on the disk with those of the layout.

    Returns three lists. The problems as (path, text): folders that hold a split as the folder of a
    group does, whose cells would be left out in silence, and names that differ in capitals only.
    The other folders that the layout does not have: figures, results, what a system leaves. And
    the folders of groups.
    """
    splits = {folded(name): name for name in layout.split_folders.values()}
    allowed = {}  # folder -> {name: as written} of the folders that may be in it
    for folder in layout.folders:
        parts = folder.split("/")
        for depth, name in enumerate(parts):
            allowed.setdefault(folded("/".join(parts[:depth])), {})[folded(name)] = name
        allowed[folded(folder)] = splits
    problems, others, waiting = [], [], [(root, "", layout.folders[0].count("/") + 1)]
    for parent, inside, depth in waiting:
        names, seen = allowed[inside], set()
        written = set(names.values())
        folders = (path for path in parent.iterdir() if path.is_dir())
        # Of names that differ in capitals only, the one as written comes first.
        for found in sorted(folders, key=lambda path: (path.name not in written, path.name)):
            name = folded(found.name)
            below = f"{inside}/{name}".lstrip("/")
            if name in names and name not in seen:
                seen.add(name)
                if below in allowed:
                    waiting.append((found, below, depth - 1))
            elif name in names or _has_split(found, depth, splits):
                problems.append((found, _extra_folder_text(layout, found, names.values())))
            elif not found.name.startswith((".", "__")):  # left by Jupyter, git or macOS
                others.append(found)
    return problems, others, [folder for folder, _, depth in waiting if depth == 0]


def _has_split(folder, depth, splits):
    """Say whether a folder holds what the folder of a group does, `depth` folders below."""
    if folder.name.startswith((".", "__", "@", "#", "$")):  # snapshots and bins of a system
        return False
    return depth > 0 and any(
        folded(path.name) in splits and path.is_dir() for path in folder.glob("/".join("*" * depth))
    )


def _extra_folder_text(layout, found, names):
    remedy = f", or add it to {DESCRIPTION}" if layout.described else ""
    return (
        f"{found} is not a folder of the {layout.name} dataset, but looks like one. Expected "
        f"beside it {_listed(names)}; rename or move it{remedy}."
    )


def _listed(things, most=10):
    """Return the first few of a list as text."""
    things = [str(thing) for thing in things]
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" * (len(things) > most))


def _missing_names(layout, root):
    """Names that a description lists, and of which no folder is there; a sentence per list."""
    if not layout.described:
        return []  # a part of a published dataset will do
    texts = []
    for place, key in enumerate(("batches", "classes", "doses")):
        there = {(group.batch, group.class_name, group.dose)[place] for group in layout.groups}
        missing = [name for name in getattr(layout, key) if name not in there]
        if missing:
            groups = layout.described.groups()
            own = next(names for names in groups if names[place] == missing[0])
            texts.append(
                f"{root / DESCRIPTION}: {key} has {_listed(map(repr, missing))}, of which there is "
                f"no folder with cells. Expected one such as "
                f"{root / layout.described.folder(*own)} with its splits; add it, or take the name "
                "out of the list."
            )
    return texts


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
        if any(find_path(root, group.file(split, kind)).exists() for kind in _kinds(layout))
    ]


def _inspect_files(layout, root, group, split, with_truth, with_target):
    """Check that the files of one group and split pair up, cell by cell.

    Returns their infos by kind, and the errors found as (path, error): a loader raises the first,
    a check of the dataset lists them all. Without `with_target` it may be missing.
    """
    infos, errors = {}, []
    kinds = _kinds(layout, with_truth)
    paths = {kind: find_path(root, group.file(split, kind)) for kind in kinds}
    for kind, path in paths.items():
        if kind == "QPI" and not with_target and not path.exists():
            continue
        try:
            if not path.exists():
                beside = _listed(sorted(other.name for other in path.parent.iterdir()))
                remedy = {
                    "QPI": ": without it, these cells can only be predicted",
                    "QPI_TRUE": ", or do not ask for the truth",
                }.get(kind, ", or remove the others")
                raise DatasetError(
                    f"{path} is missing; beside it there is {beside}. Expected one file of each "
                    f"kind for the same cells; add it{remedy}."
                )
            infos[kind] = inspect_mat(path, group.variable(split, kind))
        except (DatasetError, MatFileError) as error:
            errors.append((path, error))
    for first, other in pairwise(infos.values()):
        if first.shape != other.shape:
            text = (
                f"{first.path} has {_shape_text(first)}, but {other.path.name} beside it has "
                f"{_shape_text(other)}. Expected the same cells in both; save both files "
                "again from the same cells."
            )
            errors.append((first.path, DatasetError(text)))
    for info in infos.values():
        if info.shape[0] != info.shape[1]:
            text = f"{info.path} has {_shape_text(info)}. {_square_text(info)}"
            errors.append((info.path, DatasetError(text)))
    return infos, errors


def _shape_text(info):
    height, width, cells = info.shape
    return f"{cells} cells of {height} x {width} pixels"


def _square_text(info):
    """Say what to do about images that are not square: most often, the axes are turned."""
    first, second, third = info.shape
    if third not in (first, second):
        return "Expected square images; crop them to squares."
    return (
        f"Expected height x width x cells, images being square; {first} x {second} x {third} looks "
        f"like {_turned_text(info.variable, 0 if third == second else 1)}."
    )


def _turned_text(name, cells_axis):
    """Say which order of axes was found, and how to turn them."""
    found, axes = [
        ("cells x height x width", (1, 2, 0)),
        ("height x cells x width", (0, 2, 1)),
    ][cells_axis]
    matlab = " ".join(str(axis + 1) for axis in axes)
    return (
        f"{found}. Turn the axes, {name} = permute({name}, [{matlab}]) in MATLAB or "
        f"numpy.transpose({name}, {axes}) in Python, and save the file again"
    )


def _missing_split_text(root, split, group, splits, of_all):
    """Say what is missing: a split of a group, or of all of them."""
    if any(split in own for own in of_all):
        return (
            f"{find_path(root, group.folder)} has no {split} files, only {', '.join(splits)}. "
            "Expected the same splits in every group; add them, or remove the group."
        )
    return (
        f"{root}: No group has a {split} split. Expected Train and Valid for a training, and Test "
        "to judge it; take some cells of each group for it."
    )


def _no_files_text(root, layout, split):
    return (
        f"{root} has no .mat files of the groups asked. Expected files such as "
        f"{root / layout.groups[0].file(split, 'BF')}; check the folder, or ask for other groups."
    )


def _size_errors(infos):
    """Return (path, error) for each file whose images have not the size of most."""
    infos = list(infos)
    sizes = [info.shape[:2] for info in infos]
    usual = infos[sizes.index(mode(sizes))] if infos else None
    return [
        (
            info.path,
            DatasetError(
                f"{info.path} has {_shape_text(info)}, but {usual.path} has {_shape_text(usual)}. "
                "Expected one size in the whole dataset, since all images show the same field of "
                "view; save them all in one size."
            ),
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
                    f"Expected some of {_listed(known, most=20)}."
                )
    return [
        group
        for group in layout.groups
        if (batches is None or group.batch in batches)
        and (classes is None or group.class_name in classes)
    ]


def _check_number(name, value, most=None):
    whole = isinstance(value, int | np.integer)
    if value is not None and not (whole and 1 <= value <= (most or value)):
        up_to = f" and up to {most}" if most else ""
        raise DatasetError(
            f"{name} is {value!r}. Expected a whole number above zero{up_to}, or None."
        )


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
    with_target : bool
        False takes cells to be predicted: also those without a phase image. `read` then gives a
        `qpi` of None, unless all the cells that it reads have one.

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
        with_target=True,
    ):
        check_split(split)
        _check_number("cells_per_group", cells_per_group)
        _check_number("image_size", image_size, LARGEST_SIZE)
        self.layout, self.root = find_layout(folder)
        self.split = split
        self.with_truth = with_truth
        # Cells of a new day alone can be predicted: those of the days before need not be there.
        texts = _missing_names(self.layout, self.root) if with_target else []
        for text in (*texts, *(text for _, text in _compare_folders(self.layout, self.root)[0])):
            raise DatasetError(text)

        self._groups = self._find_groups(batches, classes)
        found = [
            _inspect_files(self.layout, self.root, group, split, with_truth, with_target)
            for group in self._groups
        ]
        self._infos = [infos for infos, _ in found]
        errors = [error for _, own in found for error in own]
        for _, error in errors or _size_errors(infos["BF"] for infos in self._infos):
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
        files = np.unique(self._group_of_cell[indices])
        for kind in kinds[self.channels :]:
            if all(kind in self._infos[file] for file in files):
                places[kind] = np.empty(shape, np.float32)
        with tqdm(total=len(indices), disable=not progress, unit="cell") as bar:
            for rows in self._read_together(indices):
                for kind, images in places.items():
                    stored = self._read_as_stored(kind, indices[rows])
                    images[rows] = resize_images(stored, self.image_size)
                bar.update(len(rows))
        return CellImages(
            brightfield,
            places["QPI"][..., None] if "QPI" in places else None,
            self.labels.iloc[indices].reset_index(drop=True),
            self.pixel_size_um,
            places["QPI_TRUE"][..., None] if self.with_truth else None,
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
        present = {group: _splits_present(self.layout, self.root, group) for group in wanted}
        there = [group for group, splits in present.items() if splits]
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
            if self.split not in present[group]:
                found = present[group], present.values()
                raise DatasetError(_missing_split_text(self.root, self.split, group, *found))
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
    with_target=True,
):
    """Load the cells of one split into memory.

    Parameters
    ----------
    folder, split, cells_per_group, image_size, batches, classes, with_truth, with_target
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
    asked = split, cells_per_group, image_size, batches, classes, with_truth, with_target
    files = CellFiles(folder, *asked)
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
        What must be put right before the dataset can be used; what is alike is in one line.
    notes : list of str
        What is worth knowing, also what the dataset cannot be used for, and why.
    uses : tuple of str
        What it can be used for: of "prediction", "training" (of a generator) and "batch removal".
    """

    layout: Layout
    root: Path
    table: pd.DataFrame
    problems: list[str]
    notes: list[str]
    uses: tuple[str, ...] = ()

    @property
    def ok(self):
        """Whether there is no problem."""
        return not self.problems

    def __str__(self):
        """Return the report as text."""
        status = self.table["status"].where(self.table["status"] == "ok", "problem")
        lines = [f"{self.layout.name} dataset in {self.root}"]
        lines += [self.table.assign(status=status).to_string(index=False)]
        lines += [f"Problem: {text}" for text in self.problems]
        lines += [f"Note: {text}" for text in self.notes]
        if self.ok:
            lines.append(f"No problem found. Can be used for: {', '.join(self.uses)}.")
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
    found, others, folders = _compare_folders(layout, root)
    remarks, ranges = {}, {}  # what is worth a note -> files; kind -> the range of values of each
    there = {group: _splits_present(layout, root, group) for group in layout.groups}
    there = {group: splits for group, splits in there.items() if splits}
    used = [split for split in SPLITS if any(split in splits for splits in there.values())]
    rows, brightfields, without_target = [], [], []
    for group, splits in tqdm(there.items(), disable=not progress, unit="group"):
        if splits != ["Test"]:  # which can be predicted alone
            found += [
                (
                    find_path(root, group.folder),
                    _missing_split_text(root, split, group, splits, there.values()),
                )
                for split in used
                if split not in splits
            ]
        targets = [find_path(root, group.file(split, "QPI")) for split in splits]
        with_target = any(path.exists() for path in targets)
        if not with_target:
            without_target.append(group)
        for split in splits:
            row, infos, errors = _check_files(
                layout, root, group, split, with_target, remarks, ranges
            )
            rows.append(row)
            found += errors
            if "BF" in infos and not errors:
                brightfields.append(infos["BF"])
    found += [(path, str(error)) for path, error in _size_errors(brightfields)]
    table = pd.DataFrame(rows, columns=TABLE_COLUMNS)
    table = table.astype({"cells": "Int64", "height": "Int64", "width": "Int64"})
    if not layout.doses:
        table = table.drop(columns="dose")
    if not there:
        found.append((root, _no_files_text(root, layout, SPLITS[0])))
    problems = _alike_together(root, found)
    notes = _folder_notes(root, there, others, folders)
    if not there:
        return DatasetReport(layout, root, table, problems, notes)
    notes += (
        _dataset_notes(layout, table)
        + _value_texts(layout, ranges)
        + [
            f"{len(paths)} file(s) {remark}. First: {paths[0]}."
            for remark, paths in remarks.items()
        ]
    )
    uses, limits = _find_uses(layout, root, table, without_target)
    return DatasetReport(layout, root, table, problems, notes + limits, () if problems else uses)


def _alike_together(root, found):
    """Return a line for all problems that differ in the file and in numbers only."""
    alike = {}
    for path, text in found:
        alike.setdefault(re.sub(r"\d+", "#", text.replace(str(path), "")), []).append((path, text))
    lines = []
    for (_, text), *more in alike.values():
        places = _listed([path.relative_to(root).as_posix() for path, _ in more], most=2)
        lines.append(f"{text} Likewise {len(more)} more: {places}." if more else text)
    return lines


def _check_files(layout, root, group, split, with_target, remarks, ranges):
    """Check one group and split: its row of the table, its infos, its problems as (path, text)."""
    known = "QPI_TRUE" in layout.contrasts
    truth = known and find_path(root, group.file(split, "QPI_TRUE")).exists()
    infos, errors = _inspect_files(layout, root, group, split, truth, with_target)
    for kind, info in infos.items():
        try:
            _scan_pixels(layout, kind, info, remarks, ranges)
        except MatFileError as error:
            errors.append((info.path, error))
    problems = [(path, str(error)) for path, error in errors]
    row = {
        "group": group.name,
        "batch": group.batch,
        "class_name": group.class_name,
        "dose": group.dose,
        "split": split,
        "version": "/".join(sorted({info.version for info in infos.values()})),
        "truth": truth,
        "status": "; ".join(text for _, text in problems) or "ok",
    }
    if infos:
        shape = next(iter(infos.values())).shape
        row |= dict(zip(("height", "width", "cells"), shape, strict=True))
    return row, infos, problems


def _scan_pixels(layout, kind, info, remarks, ranges):
    """Read all pixels, some cells at a time; note their range, and what is implausible."""
    found, lowest, highest = set(), np.inf, -np.inf
    n_cells = info.shape[2]
    at_once = CELLS_AT_ONCE if info.version == "7.3" else n_cells
    for start in range(0, n_cells, at_once):
        images = read_mat(info.path, info.variable, slice(start, start + at_once))
        images *= layout.contrasts[kind].scale
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        if kind in layout.inputs and (low == high).any():
            name = layout.contrasts[kind].name
            found.add(f"have a {name} image with the same value everywhere")
        lowest, highest = min(lowest, low.min()), max(highest, high.max())
        if len(images) == images.shape[1] == images.shape[2] == n_cells:
            found |= _order_remarks(info.variable, images)
    ranges.setdefault(kind, []).append((lowest, highest, info.path))
    if info.version == "5":
        found.add("are MATLAB v5, so streaming reads them as a whole (v7.3 is faster)")
    for remark in found:
        remarks.setdefault(remark, []).append(info.path)


def _order_remarks(name, images):
    """Look for turned axes where the shape does not tell: other cells differ more than pixels."""
    cells, *sides = (np.abs(np.diff(images, axis=axis)).mean() for axis in range(3))
    if max(sides) <= 1.2 * cells:
        return set()
    return {f"look like {_turned_text(name, int(np.argmax(sides)))}"}


def value_warnings(cells, layout):
    """Say which images have values that a network learns badly from, before a training.

    Parameters
    ----------
    cells : CellImages or CellFiles
        The first of each file are looked at.
    layout : Layout
        Of their dataset.

    Returns
    -------
    list of str
        A sentence for each kind of image, with the `scale` to write into `dataset.toml`; also for
        phases that are no radians.
    """
    ranges = {}
    rows = np.flatnonzero(cells.labels["cell"] < CELLS_LOOKED_AT)
    for start in range(0, len(rows), CELLS_AT_ONCE):
        part = cells.read(rows[start : start + CELLS_AT_ONCE])
        images = dict(zip(layout.inputs, np.moveaxis(part.brightfield, -1, 0), strict=True))
        if part.qpi is not None:
            images["QPI"] = part.qpi
        for kind, stack in images.items():
            ranges.setdefault(kind, []).append((stack.min(), stack.max(), None))
    return _value_texts(layout, ranges)


def _value_texts(layout, ranges):
    """Return a sentence for each kind of image with implausible values.

    `ranges` has a list of (lowest, highest, path or None) for each kind.
    """
    texts = []
    for kind, found in ranges.items():
        contrast = layout.contrasts[kind]
        least, most = PLAUSIBLE_PHASE if contrast.unit == "rad" else (-np.inf, np.inf)
        strange = [row for row in found if row[0] < least or row[1] > most]
        if strange:
            texts.append(
                f"{contrast.name} has values outside {least:g} to {most:g}{_where(strange)}, which "
                "does not look like radians. Expected phases in rad; convert them and save again."
            )
        elif layout.described and contrast.unit != "rad":
            texts += _scale_texts(kind, contrast, found)
    return texts


def _scale_texts(kind, contrast, found):
    """Propose a scale if the largest number, as it is used, is far from 1."""
    largest = max(max(-low, high) for low, high, _ in found)
    low, high = LARGEST_VALUES
    if low <= largest <= high or largest == 0:
        return []
    scale = contrast.scale * 10.0 ** -np.floor(np.log10(largest))
    table = {"QPI": "[target]", "QPI_TRUE": "[truth]"}.get(kind, "[[input]]")
    far = [row for row in found if not low <= max(-row[0], row[1]) <= high]
    largest = f"{largest:,.0f}" if largest > 1 else f"{largest:.2g}"
    return [
        f"{contrast.name} has values up to {largest}{_where(far)}, from which networks learn "
        f"badly. Expected numbers of the order of 1; write scale = {scale:.3g} into the {table} of "
        f"{contrast.name} in {DESCRIPTION}."
    ]


def _where(rows):
    path = rows[0][2]
    return f" ({len(rows)} file(s), first {path})" if path else ""


def _folder_notes(root, there, others, folders):
    """Say which folders are left out: those of no group, and those of groups without files."""
    notes = []
    if others:
        names = _listed(path.relative_to(root).as_posix() for path in others)
        notes.append(
            f"{len(others)} folder(s) are no part of the dataset and are ignored: {names}."
        )
    used = {folded(group.folder) for group in there}
    names = [path.relative_to(root).as_posix() for path in folders]
    empty = [name for name in names if folded(name) not in used]
    if empty:
        notes.append(
            f"{len(empty)} group(s) have a folder, but no files of any split, and are left out: "
            f"{_listed(empty)}."
        )
    return notes


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
    if "Test" not in set(table["split"]):
        notes.append("No group has a Test split, which predict and evaluate take by default.")
    if table["truth"].any():
        name = layout.target.name if layout.described else "QPI_TRUE"
        notes.append(
            f"Batch-free truth ({name}) is there for {table['truth'].sum()} of the {len(table)} "
            f"groups and splits{'' if layout.described else ': these are simulated cells'}."
        )
    return notes


def _find_uses(layout, root, table, without_target):
    """Return what a dataset can be used for, and a note for each thing that it cannot."""
    splits_of = table.groupby("group", sort=False)["split"].agg(set)
    reasons = _missing_names(layout, root)
    for split in ("Train", "Valid"):
        lacking = [name for name, splits in splits_of.items() if split not in splits]
        if len(lacking) == len(splits_of):
            reasons.append(_missing_split_text(root, split, None, (), ()))
        elif lacking:
            reasons.append(f"{len(lacking)} group(s) have no {split} split: {_listed(lacking)}.")
    if without_target:
        names = _listed(group.name for group in without_target)
        inputs = " and ".join(layout.images["input"])
        reasons.append(
            f"{len(without_target)} group(s) have {inputs} alone, without {layout.target.name}: "
            f"{names}."
        )
    notes = [f"Not for training, only for prediction: {reason}" for reason in reasons]
    uses = ["prediction"] if reasons else ["prediction", "training", "batch removal"]
    train = table[table["split"] == "Train"]
    try:
        if len(train):
            check_trainable(train)
    except DatasetError as error:
        uses, notes = uses[:2], [*notes, str(error)]
    return tuple(uses), notes
