"""How datasets are laid out: the published ones and a user's own, all by a description in TOML.

A *group* is one folder of cells with the same batch (day of acquisition), class (what must
survive batch removal) and, in the drug dataset, dose. The order of batches, classes and groups
is fixed by the description, so that label codes never change from run to run. `lung.toml` and
`drug.toml` beside this module describe the published datasets; a dataset of your own brings a
`dataset.toml`, see `cytomad_lib.data.description`.

    >>> from cytomad_lib.data.layouts import LUNG
    >>> len(LUNG.groups), LUNG.groups[0].name
    (21, 'Batch1/H69')
    >>> str(LUNG.groups[0].file("Test", "BF"))
    'Batch1/H69/Test/H69_BF.mat'
"""

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cytomad_lib.data.description import (
    DESCRIPTION,
    PUBLISHED_FOLDER,
    SPLITS,
    Description,
    folded,
    read_description,
)
from cytomad_lib.data.errors import DatasetError

NOTES_FILE = "simulation.json"  # in the root of every simulated dataset


@dataclass(frozen=True)
class Group:
    """One folder of cells: the same batch, class and (where there is one) dose."""

    batch: str
    class_name: str
    dose: str | None
    description: Description = field(repr=False)

    @property
    def name(self):
        """Name for people: ``Batch1/H69`` or ``B1/Docetaxel/D3``."""
        return "/".join(filter(None, self._names))

    @property
    def folder(self):
        """Its folder under the dataset's root, "/" between the parts."""
        return self.description.folder(*self._names)

    @property
    def _names(self):
        return self.batch, self.class_name, self.dose

    def file(self, split, kind):
        """Path under the dataset's root, e.g. ``Batch1/H69/Test/H69_BF.mat``."""
        check_known("split", split, SPLITS)
        check_known("kind", kind, self.description.contrasts)
        return PurePosixPath(self.description.file(kind, split, *self._names))

    def variable(self, split, kind):
        """Name of the variable in that file, e.g. ``BF``."""
        return self.description.variable(kind, split, *self._names)


@dataclass(frozen=True)
class Layout(Description):
    """One dataset: its description, and its groups in their stable order.

    Of a user's dataset, the groups are those whose folders are there.
    """

    root_folder: str = ""
    groups: tuple[Group, ...] = ()  # by batch, then class, then dose
    described: bool = True  # by a user's dataset.toml; False: published

    @property
    def group_folders(self):
        """Folders of all groups that there may be, under the dataset's root."""
        return [self.folder(*names) for names in self.combinations]

    @property
    def inputs(self):
        """The kinds of image that go in, in the order of the channels."""
        return tuple(kind for kind in self.contrasts if not kind.startswith("QPI"))

    @property
    def target(self):
        """What the image shows that comes out: a `Contrast`."""
        return self.contrasts["QPI"]

    @property
    def images(self):
        """What goes in and what comes out, as text: what a model was trained for."""
        return {
            "input": [self.contrasts[kind].name for kind in self.inputs],
            "target": f"{self.target.name} ({self.target.unit or 'no unit'})",
        }

    def classes_of_batch(self, batch):
        """Classes that were imaged in `batch`, in the stable order."""
        return tuple(dict.fromkeys(g.class_name for g in self.groups if g.batch == batch))

    def batches_of_class(self, class_name):
        """Batches in which `class_name` was imaged, in the stable order."""
        return tuple(dict.fromkeys(g.batch for g in self.groups if g.class_name == class_name))


def _layout(said, root_folder, described, exists=lambda folder: True):
    """Make a layout of a description; `exists` tells whether a group's folder is there."""
    groups = tuple(
        Group(*names, said) for names in said.combinations if exists(said.folder(*names))
    )
    return Layout(**vars(said), root_folder=root_folder, groups=groups, described=described)


LUNG, DRUG = (
    _layout(read_description(PUBLISHED_FOLDER / f"{name}.toml"), root_folder, described=False)
    for name, root_folder in (("lung", "7LungCancerDataset"), ("drug", "H2170DrugTreatmentDataset"))
)
LAYOUTS = {"lung": LUNG, "drug": DRUG}
KINDS = tuple(LUNG.contrasts)
WAVELENGTH_UM = LUNG.wavelength_um
REFRACTION_INCREMENT = LUNG.refraction_increment_um3_per_pg

# The variable inside each kind of file.
VARIABLE = {kind: contrast.variable for kind, contrast in LUNG.contrasts.items()}


def is_simulated(root):
    """Say whether a dataset's own folder holds simulated cells."""
    return (Path(root) / NOTES_FILE).exists()


def dose_level(dose, layout=DRUG):
    """Return the level of a dose: 0 for untreated, higher for more.

    In the drug dataset that is 0 for the untreated ``"Control"``, 1 to 5 for D1 … G5; in a
    described dataset the dose's place in the list.

    Raises
    ------
    DatasetError
        For a name that is no dose of the dataset.
    """
    if dose not in layout.doses:
        raise DatasetError(f"{dose!r} is no dose. Expected one of {', '.join(layout.doses)}.")
    if layout.described:
        return layout.doses.index(dose)
    return 0 if dose == "Control" else int(dose[-1])


def check_known(what, name, known):
    """Refuse a name, as of a split, that is none of the known ones.

    Raises
    ------
    DatasetError
    """
    if name not in known:
        raise DatasetError(f"{what} is {name!r}. Expected one of {', '.join(known)}.")


def find_path(root, path):
    """Return where a file or folder of a dataset is on the disk.

    Capitals may differ, as Windows and macOS do not tell them apart: what is there under exactly
    this name comes first, then what differs in capitals only, if nothing else does.

    Parameters
    ----------
    root : path
        The dataset's own folder.
    path : path
        Under the root, such as `Group.file` gives it.

    Returns
    -------
    pathlib.Path
        Spelt as on the disk; as in `path` where nothing is there.
    """
    found = Path(root)
    for name in PurePosixPath(path).parts:
        if not (found / name).exists() and found.is_dir():
            alike = [other for other in os.listdir(found) if folded(other) == folded(name)]
            name = alike[0] if len(alike) == 1 else name
        found /= name
    return found


def refuse_inside(out, root):
    """Refuse to write results into a dataset: they would lie among its cells.

    Parameters
    ----------
    out : path
        It need not exist.
    root : path
        The dataset's own folder, as `find_layout` returns it.

    Raises
    ------
    DatasetError
    """
    root, place = Path(root).resolve(), Path(out).resolve()
    if any(folder.exists() and folder.samefile(root) for folder in (place, *place.parents)):
        raise DatasetError(
            f"{out} is inside the dataset {root}. Expected a folder for results outside of it, "
            f"such as {root.parent / 'results'}."
        )


def _described_layout(root):
    """Make the layout of a folder that has a `dataset.toml`."""
    said = read_description(root / DESCRIPTION)
    splits = {folded(name) for name in said.splits.values()}
    there = {  # one look at the disk, however many groups are described
        folded(path.parent.relative_to(root).as_posix())
        for path in root.glob("/".join("*" * len(said.folders)))
        if folded(path.name) in splits and path.is_dir()
    }
    layout = _layout(said, root.resolve().name, True, lambda folder: folded(folder) in there)
    if not layout.groups:
        example = root / said.folder(*said.combinations[0]) / said.splits["Train"]
        names = sorted(path.name for path in root.iterdir() if path.is_dir())
        found = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "none"
        raise DatasetError(
            f"{root / DESCRIPTION} describes folders such as {example}, but none of them is there; "
            f"folders in {root}: {found}. Expected the same names and order in both; mend the file "
            "or rename the folders."
        )
    return layout


def find_layout(folder: Path | str) -> tuple[Layout, Path]:
    """Find which dataset a folder holds.

    Parameters
    ----------
    folder : path
        The dataset's own folder (recognised by its `dataset.toml`, its name or the folders in it),
        or the folder above it when only one dataset is there.

    Returns
    -------
    layout : Layout
    root : pathlib.Path
        The dataset's own folder.

    Raises
    ------
    DatasetError
        If the folder is missing, holds no dataset or several, or its `dataset.toml` has a mistake.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {found}. Expected a dataset folder; check the path.")

    if (folder / DESCRIPTION).exists():
        return _described_layout(folder), folder

    below = {folder / layout.root_folder: layout for layout in LAYOUTS.values()}
    below = {root: layout for root, layout in below.items() if root.is_dir()}
    below |= {path.parent: None for path in sorted(folder.glob(f"[!._]*/{DESCRIPTION}"))}
    if len(below) > 1:
        names = " and ".join(root.name for root in below)
        raise DatasetError(
            f"{folder} holds both {names}. Expected one dataset; "
            f"name the one you want, for example {next(iter(below))}."
        )
    if below:
        root, layout = below.popitem()
        return layout or _described_layout(root), root

    for layout in LAYOUTS.values():
        first_folders = {group.folder.split("/")[0] for group in layout.groups}
        inside = any((folder / name).is_dir() for name in first_folders)
        if folder.resolve().name == layout.root_folder or inside:
            return layout, folder
    roots = " or ".join(layout.root_folder for layout in LAYOUTS.values())
    raise DatasetError(
        f"{folder} holds no dataset. Expected a folder {roots}, one that has the dataset's "
        f"own folders in it ({LUNG.groups[0].folder}, {DRUG.groups[0].folder}, …), or for files "
        f"of your own a {DESCRIPTION}; check the path."
    )
