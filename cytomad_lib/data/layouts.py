"""How datasets are laid out: the two published ones as data, and others by their description.

A *group* is one folder of cells with the same batch (day of acquisition), class (what must
survive batch removal) and, in the drug dataset, dose. The order of batches, classes and groups
is fixed here once, so that label codes never change from run to run. A dataset of your own brings
the same in a file `dataset.toml`, see `cytomad_lib.data.description`.

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
    REFRACTION_INCREMENT,
    SPLITS,
    Contrast,
    Description,
    folded,
    read_description,
)
from cytomad_lib.data.errors import DatasetError

# QPI_TRUE is the phase image without batch effect, which only a simulation can know.
CONTRASTS = {
    "BF": Contrast("BF", "Brightfield"),
    "QPI": Contrast("QPI", "phase", "rad"),
    "QPI_TRUE": Contrast("QPI", "phase", "rad"),
}
KINDS = tuple(CONTRASTS)

WAVELENGTH_UM = 1.06  # of the published datasets

NOTES_FILE = "simulation.json"  # in the root of every simulated dataset

# The variable inside each kind of file.
VARIABLE = {kind: contrast.variable for kind, contrast in CONTRASTS.items()}


@dataclass(frozen=True)
class Group:
    """One folder of cells: the same batch, class and (where there is one) dose."""

    batch: str
    class_name: str
    dose: str | None
    folder: str  # under the dataset's root, "/" between the parts
    stem: str  # how its file names start
    described: Description | None = field(default=None, repr=False)  # None: published

    @property
    def name(self):
        """Name for people: ``Batch1/H69`` or ``B1/Docetaxel/D3``."""
        parts = (self.batch, self.class_name, self.dose)
        return "/".join(part for part in parts if part is not None)

    def file(self, split, kind):
        """Path under the dataset's root, e.g. ``Batch1/H69/Test/H69_BF.mat``."""
        check_split(split)
        kinds = self.described.contrasts if self.described else CONTRASTS
        if kind not in kinds:
            raise DatasetError(f"kind is {kind!r}. Expected one of {', '.join(kinds)}.")
        if self.described:
            file = self.described.file(kind, split, self.batch, self.class_name, self.dose)
            return PurePosixPath(file)
        return PurePosixPath(self.folder, split, f"{self.stem}_{kind}.mat")

    def variable(self, split, kind):
        """Name of the variable in that file, e.g. ``BF``."""
        if self.described:
            return self.described.variable(kind, split, self.batch, self.class_name, self.dose)
        return CONTRASTS[kind].variable


@dataclass(frozen=True)
class Layout:
    """One dataset: its names in their stable order, and its groups.

    Of a described dataset, the groups are those whose folders are there. `published_counts` are the
    cells per group that the published programs ask for; None means that no number is given, so all
    there are. The published demonstration files hold fewer: `demo_cells_per_group` in each split.
    """

    name: str
    root_folder: str
    class_term: str  # what a class is, for people: "cell line" or "drug"
    batches: tuple[str, ...]
    classes: tuple[str, ...]
    doses: tuple[str, ...]  # empty where there are none
    groups: tuple[Group, ...]  # by batch, then class, then dose
    published_counts: dict[str, int | None] = field(hash=False)
    demo_cells_per_group: int
    image_size: int = 128  # pixels
    field_of_view_um: float = 45.0
    described: Description | None = None  # by its `dataset.toml`; None: published
    wavelength_um: float | None = None  # of the light, for dry mass; None: not known
    refraction_increment_um3_per_pg: float = REFRACTION_INCREMENT

    @property
    def folders(self):
        """Folders of all groups that there may be, under the dataset's root."""
        if self.described:
            return [self.described.folder(*names) for names in self.described.groups()]
        return [group.folder for group in self.groups]

    @property
    def split_folders(self):
        """What the folder of each split is called."""
        return self.described.splits if self.described else {split: split for split in SPLITS}

    @property
    def contrasts(self):
        """What each kind of image shows: "BF" (and "BF2"…), "QPI", "QPI_TRUE" where known."""
        return self.described.contrasts if self.described else CONTRASTS

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

    def choose_groups(self, names):
        """Return the groups of these names, in the stable order, and the names that there are not.

        Parameters
        ----------
        names : str, sequence of str or None
            Such as ``"Batch1/H69"``; None means all.
        """
        if names is None:
            return list(self.groups), []
        names = [names] if isinstance(names, str) else list(names)
        known = [group.name for group in self.groups]
        chosen = [group for group in self.groups if group.name in names]
        return chosen, [name for name in names if name not in known]

    def classes_of_batch(self, batch):
        """Classes that were imaged in `batch`, in the stable order."""
        return tuple(dict.fromkeys(g.class_name for g in self.groups if g.batch == batch))

    def batches_of_class(self, class_name):
        """Batches in which `class_name` was imaged, in the stable order."""
        return tuple(dict.fromkeys(g.batch for g in self.groups if g.class_name == class_name))


def _lung_layout():
    days_of_line = {
        "H69": (1, 3, 4),
        "H358": (1, 2, 5),
        "H520": (3, 6, 7),
        "H526": (2, 5, 6),
        "H1975": (3, 4, 6),
        "H2170": (1, 3, 7),
        "HCC827": (1, 2, 6),
    }
    groups = tuple(
        Group(f"Batch{day}", line, None, folder=f"Batch{day}/{line}", stem=line)
        for day in range(1, 8)
        for line, days in days_of_line.items()
        if day in days
    )
    return Layout(
        name="lung",
        root_folder="7LungCancerDataset",
        class_term="cell line",
        batches=tuple(f"Batch{day}" for day in range(1, 8)),
        classes=tuple(days_of_line),
        doses=(),
        groups=groups,
        published_counts={"Train": 1000, "Valid": 200, "Test": None},
        demo_cells_per_group=500,
        wavelength_um=WAVELENGTH_UM,
    )


def _drug_layout():
    # The untreated control, DMSO, is in every batch; each drug in two.
    days_and_doses = {
        "DMSO": ((1, 2, 3, 4, 5, 6), ("Control",)),
        "Docetaxel": ((1, 2), tuple(f"D{level}" for level in range(1, 6))),
        "Afatinib": ((3, 4), tuple(f"A{level}" for level in range(1, 6))),
        "Gemcitabine": ((5, 6), tuple(f"G{level}" for level in range(1, 6))),
    }
    groups = tuple(
        Group(f"B{day}", drug, dose, folder=f"{drug}/B{day}/{dose}", stem=dose)
        for day in range(1, 7)
        for drug, (days, doses) in days_and_doses.items()
        if day in days
        for dose in doses
    )
    return Layout(
        name="drug",
        root_folder="H2170DrugTreatmentDataset",
        class_term="drug",
        batches=tuple(f"B{day}" for day in range(1, 7)),
        classes=tuple(days_and_doses),
        doses=tuple(dose for _, doses in days_and_doses.values() for dose in doses),
        groups=groups,
        published_counts={"Train": 1000, "Valid": 500, "Test": None},
        demo_cells_per_group=400,
        wavelength_um=WAVELENGTH_UM,
    )


LUNG = _lung_layout()
DRUG = _drug_layout()
LAYOUTS = {"lung": LUNG, "drug": DRUG}


def is_simulated(root):
    """Say whether a dataset's own folder holds simulated cells."""
    return (Path(root) / NOTES_FILE).exists()


def dose_level(dose, layout=DRUG):
    """Return the level of a dose: 0 for none, more for more.

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


def check_split(split):
    """Refuse what is no split.

    Raises
    ------
    DatasetError
    """
    if split not in SPLITS:
        raise DatasetError(f"split is {split!r}. Expected one of {', '.join(SPLITS)}.")


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
    groups = tuple(
        Group(*names, folder=said.folder(*names), stem=names[1], described=said)
        for names in said.groups()
        if folded(said.folder(*names)) in there
    )
    if not groups:
        example = root / said.folder(*said.groups()[0]) / said.splits["Train"]
        names = sorted(path.name for path in root.iterdir() if path.is_dir())
        found = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "none"
        raise DatasetError(
            f"{root / DESCRIPTION} describes folders such as {example}, but none of them is there; "
            f"folders in {root}: {found}. Expected the same names and order in both; mend the file "
            "or rename the folders."
        )
    return Layout(
        name=said.name,
        root_folder=root.resolve().name,
        class_term=said.class_term,
        batches=said.batches,
        classes=said.classes,
        doses=said.doses,
        groups=groups,
        published_counts=dict.fromkeys(SPLITS),
        demo_cells_per_group=0,
        field_of_view_um=said.field_of_view_um,
        described=said,
        wavelength_um=said.wavelength_um,
        refraction_increment_um3_per_pg=said.refraction_increment_um3_per_pg,
    )


def find_layout(folder):
    """Say which dataset a folder holds.

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
