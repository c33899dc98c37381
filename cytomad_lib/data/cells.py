"""Cell images with their labels: load them, select, resize, stream, and check a dataset.

`load_cells` puts a split into memory; `CellFiles` reads the same cells a few at a time. The images
of a cell are matched by their position in their files, so both refuse a group whose files do not
pair up, and never return fewer cells than requested. Cells to be predicted need
no phase image: `with_target=False` takes brightfield alone.

    >>> from cytomad_lib.data.cells import CellFiles, load_cells
    >>> from cytomad_lib.data.check import check_dataset
    >>> lung = "Dataset/7LungCancerDataset"
    >>> print(check_dataset(lung))                                     # doctest: +SKIP
    >>> cells = load_cells(lung, "Train", cells_per_group=10)          # doctest: +SKIP
    >>> cells.brightfield.shape, cells.classes                         # doctest: +SKIP
    >>> files = CellFiles(lung, "Train", image_size=128)               # doctest: +SKIP
    >>> files.read([5, 0, 2]).qpi.shape                                # doctest: +SKIP
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cytomad_lib.data import folders
from cytomad_lib.data.description import REFRACTION_INCREMENT
from cytomad_lib.data.errors import DatasetError
from cytomad_lib.data.labels import Labelled
from cytomad_lib.data.layouts import SPLITS, check_known, find_layout, find_path
from cytomad_lib.data.resizing import resize_images
from cytomad_lib.data.stackfiles import matching, read_stack

CELLS_AT_ONCE = 128  # read and resized together: 8 MB of 128 x 128 pixels

Indices = np.ndarray | slice | Sequence[int]  # or a boolean mask, which is an array
LARGEST_SIZE = 2048  # pixels; a minibatch of such images already takes all memory of a GPU


# --- Images in memory ------------------------------------------------------------------------


@dataclass(eq=False)
class CellImages(Labelled):
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
    qpi: np.ndarray | None
    labels: pd.DataFrame
    pixel_size_um: float
    truth: np.ndarray | None = None
    wavelength_um: float | None = None
    refraction_increment: float = REFRACTION_INCREMENT

    def __post_init__(self) -> None:
        """Check that images and labels fit each other."""
        for name in ("brightfield", "qpi", "truth"):
            array, several = getattr(self, name), name == "brightfield"  # may have channels
            if array is None:
                continue
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

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of images per cell that go in."""
        return self.brightfield.shape[-1]

    def select(self, index_or_mask: Indices) -> "CellImages":
        """Return the cells given by numbers (in any order), a slice or a boolean mask."""
        images = {name: getattr(self, name) for name in ("brightfield", "qpi", "truth")}
        part = {name: array[index_or_mask] for name, array in images.items() if array is not None}
        labels = self.labels.iloc[index_or_mask].reset_index(drop=True)
        return replace(self, labels=labels, **part)

    def read(self, indices: Indices) -> "CellImages":
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


# --- Files on disk ---------------------------------------------------------------------------


def _check_number(name, value, most=None):
    whole = isinstance(value, int | np.integer)
    if value is not None and not (whole and 1 <= value <= (most or value)):
        up_to = f" and up to {most}" if most else ""
        raise DatasetError(
            f"{name} is {value!r}. Expected a whole number above zero{up_to}, or None."
        )


class CellFiles(Labelled):
    """Cells of one split, read from their files on request.

    A dataset may have only some of its layout's groups. Only the requested cells are read, fastest
    where cells lie side by side: `training.minibatches` trains from disk that way. MATLAB v5 files
    and montages are read as a whole each time, see `check_streams`.

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
    file_codes : int array (cells,)
        File of each cell. Cells of one file are neighbours, in its order.

    Raises
    ------
    DatasetError
        If the folders, pairs, sizes or counts are not as requested.
    ImageFileError
        If a file cannot be read.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        cells_per_group: int | None = None,
        image_size: int | None = None,
        batches: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        with_truth: bool = False,
        with_target: bool = True,
    ) -> None:
        check_known("split", split, SPLITS)
        _check_number("cells_per_group", cells_per_group)
        _check_number("image_size", image_size, LARGEST_SIZE)
        self.layout, self.root = find_layout(folder)
        self.split = split
        self.with_truth = with_truth
        # Cells of a new day alone can be predicted: those of the days before need not be there.
        texts = folders.missing_names(self.layout, self.root) if with_target else []
        texts += [text for _, text in folders.compare_folders(self.layout, self.root)[0]]
        if texts:
            raise DatasetError(texts[0])

        self.groups = self._find_groups(batches, classes)
        found = [
            folders.inspect_files(self.layout, self.root, group, split, with_truth, with_target)
            for group in self.groups
        ]
        self._infos = [infos for infos, _ in found]
        errors = [error for _, own in found for error in own]
        for _, error in errors or folders.size_errors(infos["BF"] for infos in self._infos):
            raise error
        self.image_size = image_size or self._infos[0]["BF"].shape[0]
        self.pixel_size_um = self.layout.field_of_view_um / self.image_size
        self.labels, self.file_codes = self._make_labels(cells_per_group)
        self._cell_in_file = self.labels["cell"].to_numpy()

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of images per cell that go in."""
        return len(self.layout.inputs)

    @property
    def has_truth(self) -> bool:
        """Whether any of these groups has a batch-free truth."""
        return "QPI_TRUE" in self.layout.contrasts and any(
            matching(find_path(self.root, group.file(self.split, "QPI_TRUE")))
            for group in self.groups
        )

    def check_streams(self) -> None:
        """Refuse files that can only be read as a whole.

        Raises
        ------
        DatasetError
            Names the first such file.
        """
        for info in (info for infos in self._infos for info in infos.values() if info.whole):
            kind = "MATLAB v5" if info.version == "5" else f"{info.axes} {info.version}"
            raise DatasetError(
                f"{info.path} is a {kind} file, which can only be read as a whole. Expected one "
                "cell after the other in it, to read a few cells at a time; save the dataset again "
                "with save(..., '-v7.3'), as TIFF or with cytomad_lib.data.matfiles.write_mat("
                "path, {name: array}), or load it into memory."
            )

    def read(self, indices: Indices, progress: bool = False) -> CellImages:
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
        ImageFileError
            If a file cannot be read or holds NaN.
        """
        indices = np.arange(len(self))[indices]
        shape = (len(indices), self.image_size, self.image_size)
        brightfield = np.empty((*shape, self.channels), np.float32)
        kinds = folders.kinds_of(self.layout, self.with_truth)
        # Where the images of each kind go: the inputs side by side.
        places = {kind: brightfield[..., number] for number, kind in enumerate(self.layout.inputs)}
        files = np.unique(self.file_codes[indices])
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
            self.layout.wavelength_um,
            self.layout.refraction_increment_um3_per_pg,
        )

    def _find_groups(self, batches, classes):
        """Return the groups that are on disk; each must have the split."""
        wanted = folders.wanted_groups(self.layout, batches, classes)
        present = {group: folders.splits_present(self.layout, self.root, group) for group in wanted}
        there = [group for group, splits in present.items() if splits]
        if not there:
            raise DatasetError(folders.no_files_text(self.root, self.layout, self.split))
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
                raise DatasetError(folders.missing_split_text(self.root, self.split, group, *found))
        return there

    def _make_labels(self, cells_per_group):
        infos = [infos["BF"] for infos in self._infos]
        for info in infos:
            if (count := info.shape[2]) < (cells_per_group or 0):
                raise DatasetError(
                    f"{info.path} has {count} cells. Expected the {cells_per_group} asked "
                    f"by cells_per_group; ask for {count} or fewer, or None for all there are."
                )
        counts = [cells_per_group or info.shape[2] for info in infos]
        file_codes = np.repeat(np.arange(len(counts)), counts)
        layout, labels = self.layout, {}
        names = {"batch": layout.batches, "class_name": layout.classes, "dose": layout.doses}
        for column in filter(names.get, names):  # without doses, there is no such column
            own = [getattr(group, column) for group in self.groups]
            labels[column] = pd.Categorical(np.repeat(own, counts), names[column])
        labels["cell"] = np.concatenate([np.arange(count) for count in counts])
        return pd.DataFrame(labels), file_codes

    def _read_together(self, indices):
        """Give the rows of `indices` in the order of the files: some at a time, all of one file."""
        order = np.argsort(indices, kind="stable")
        files = self.file_codes[indices[order]]
        for rows in np.split(order, np.flatnonzero(np.diff(files)) + 1):
            if not len(rows):
                return
            infos = self._infos[self.file_codes[indices[rows[0]]]]
            whole = any(info.whole for info in infos.values())
            # Some files are read as a whole each time; MATLAB v5 allows them 2 GB.
            at_once = len(rows) if whole else CELLS_AT_ONCE
            for start in range(0, len(rows), at_once):
                yield rows[start : start + at_once]

    def _read_as_stored(self, kind, indices):
        """Read the images of these cells, all of one group and not yet resized."""
        info = self._infos[self.file_codes[indices[0]]][kind]
        images = read_stack(info, self._cell_in_file[indices])
        images *= self.layout.contrasts[kind].scale
        return images


def load_cells(
    folder: Path | str,
    split: str,
    cells_per_group: int | None = None,
    image_size: int | None = None,
    batches: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    with_truth: bool = False,
    progress: bool = False,
    with_target: bool = True,
) -> CellImages:
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
    DatasetError, ImageFileError
        As `CellFiles`, and if a pixel is NaN or infinite.
    """
    asked = split, cells_per_group, image_size, batches, classes, with_truth, with_target
    files = CellFiles(folder, *asked)
    return files.read(np.arange(len(files)), progress=progress)
