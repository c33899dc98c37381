"""Public cells measured by others: images of Jurkat cells, and tables of phenotypes.

`jurkat`: imaging flow cytometry of Jurkat cells in seven phases of the cell cycle, brightfield and
DNA stain, from two experiments of which the second holds a single phase. The files are montages of
30 x 30 tiles; the cells are cut from them and divided into Train, Valid and Test by a fixed seed.

`phenotypes`: 84 phenotypes per cell from brightfield and quantitative phase, in two tables:
`four_lines` (H1975, H2170, MB231, HL60) and `gemcitabine` (untreated, and five doses).

`cytomad_lib.data.download` fetches them.

    >>> load_phenotypes("Real/Phenotypes", "four_lines")["label"].value_counts()  # doctest: +SKIP
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from cytomad_lib.data.errors import DatasetError
from cytomad_lib.data.files import write_text
from cytomad_lib.data.layouts import DRUG, LUNG
from cytomad_lib.data.matfiles import write_mat

NOTICE = "SOURCE.txt"  # beside the files: where they are from, licence, citation

CUT_FILE = "montages.txt"  # in the folder of a phase: the montages that its cells are from
TILE = 40  # pixels along each side of a tile of a montage
CHANNELS = {"BF": "Ch3", "DNA": "Ch4"}  # image -> how the name of its montage starts
PHASES = ("G1", "S_phase", "G2", "Prophase", "Metaphase", "Anaphase", "Telophase")
SHARES = {"Valid": 0.1, "Test": 0.3}  # of the cells of a group; the others are Train
SPLIT_SEED = 20160107
DESCRIBED = Path(__file__).with_name("jurkat.toml")  # with places for batches and classes

# Columns of the phenotype tables that are no phenotypes.
MAPS = [f"{name}_{axis}" for name in ("PCA", "tSNE", "UMAP") for axis in "xyz"]
NO_PHENOTYPES = ["AllImageID", *MAPS, "Zero_z", "AllLabel"]
LOGARITHMIC = ["Area", "Volume", "Dry Mass", "Circularity", "Eccentricity", "AspectRatio"]


@dataclass(frozen=True)
class Source:
    """A public dataset: one commit of a repository, and what is made of its files."""

    repository: str
    commit: str
    folder: str  # made under the user's folder
    licence: str = ""  # written beside the files, unless empty
    citation: str = ""
    finish: Callable | None = None  # (root, raw) -> lines for the user

    @property
    def url(self):
        """What comes before the files' paths."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}"

    @property
    def notice(self):
        """Source, licence and citation as text."""
        return (
            f"Source: https://github.com/{self.repository}, commit {self.commit}\n"
            f"Licence: {self.licence}\nPlease cite: {self.citation}"
        )


# --- Jurkat ----------------------------------------------------------------------------------


def cut_montages(root, raw=False):
    """Cut the montages of jurkat into cells, and write them as a dataset.

    Tiles that have the same value everywhere, in either channel, are empty and left out.

    Parameters
    ----------
    root : path
        The dataset's folder, with montages in ``montages/<experiment>/<phase>``.
    raw : bool
        Keep the montages.

    Returns
    -------
    list of str
        A line for each group.
    """
    root, lines = Path(root), []
    for folder in sorted(root.glob("montages/*/*")):
        group = folder.relative_to(root / "montages").as_posix()
        paths = {kind: sorted(folder.glob(f"{start}_*.tif")) for kind, start in CHANNELS.items()}
        _refuse_unpaired(folder, paths)
        channels = {kind: np.concatenate([_tiles(p) for p in paths[kind]]) for kind in paths}
        present = np.all([np.ptp(tiles, axis=(1, 2)) > 0 for tiles in channels.values()], axis=0)
        _write_group(root / group, {kind: tiles[present] for kind, tiles in channels.items()})
        numbers = [f"{group}/{path.stem.partition('_')[2]}\n" for path in paths["BF"]]
        write_text(root / group / CUT_FILE, "".join(numbers))
        lines.append(f"{group}: {present.sum()} cells; {(~present).sum()} empty tiles left out.")
    there = {path.parent.relative_to(root).parts for path in root.glob("*/*/Test")}
    batches, classes = ({names[place] for names in there} for place in (0, 1))
    text = DESCRIBED.read_text(encoding="utf-8")
    text = text.replace("BATCHES", json.dumps(sorted(batches)))
    text = text.replace("CLASSES", json.dumps([phase for phase in PHASES if phase in classes]))
    write_text(root / "dataset.toml", text)
    if not raw:
        shutil.rmtree(root / "montages", ignore_errors=True)
    return lines


def without_cut(root, rows):
    """Leave out the files of jurkat whose cells are in the dataset already.

    If some montages of a phase are new, all those requested are needed to divide its cells anew.
    """
    done = {
        line for path in Path(root).glob(f"*/*/{CUT_FILE}") for line in path.read_text().split()
    }
    phases = {row["group"].rpartition("/")[0] for row in rows if row["group"] not in done}
    return [row for row in rows if row["group"].rpartition("/")[0] in phases]


def _refuse_unpaired(folder, paths):
    numbers = [[path.stem.partition("_")[2] for path in paths[kind]] for kind in paths]
    if numbers[0] != numbers[1]:
        found = " and ".join(f"{len(paths[kind])} {CHANNELS[kind]}_*.tif" for kind in paths)
        raise DatasetError(
            f"{folder} has {found}. Expected the same montages of both channels; delete this "
            "folder and download again."
        )


def _tiles(path):
    """Cut a montage into its tiles, row by row: array (tiles, height, width)."""
    montage = tifffile.imread(path)
    rows, columns = (length // TILE for length in montage.shape)
    tiles = montage.reshape(rows, TILE, columns, TILE).swapaxes(1, 2)
    return tiles.reshape(-1, TILE, TILE)


def _write_group(folder, channels):
    """Divide the cells of a group into splits, the same way for all channels, and write them."""
    shutil.rmtree(folder, ignore_errors=True)
    n = len(channels["BF"])
    seed = [SPLIT_SEED, *"/".join(folder.parts[-2:]).encode()]
    order = np.random.default_rng(seed).permutation(n)
    n_valid, n_test = (max(1, round(share * n)) for share in SHARES.values())
    parts = np.split(order, [n - n_valid - n_test, n - n_test])
    for split, rows in zip(("Train", *SHARES), parts, strict=True):
        for kind, tiles in channels.items():
            stack = np.moveaxis(tiles[np.sort(rows)], 0, -1)
            write_mat(folder / split / f"{folder.name}_{kind}.mat", {kind: stack})


# --- Phenotypes ------------------------------------------------------------------------------


def load_phenotypes(folder: Path | str, name: str = "four_lines") -> pd.DataFrame:
    """Load a table of single-cell phenotypes that the CytoMAD group published.

    Parameters
    ----------
    folder : path
        As `download_dataset` returns it, with the tables in it.
    name : "four_lines" or "gemcitabine"
        600 cells each of four cell lines, or 350 cells each of untreated and five doses.

    Returns
    -------
    DataFrame
        One row per cell. `label` (categorical, in the order of the file) is the cell line or the
        treatment; of gemcitabine, `dose` is the number in the label (0 for untreated; the unit is
        not published). The other columns are 84 phenotypes under their published names, all in
        linear units (area in µm², volume in µm³, dry mass in pg as given, phase in rad): the
        logarithms of `four_lines` are undone.

    Raises
    ------
    DatasetError
        If the table is not there.
    """
    if name not in ("four_lines", "gemcitabine"):
        raise DatasetError(f"name is {name!r}. Expected 'four_lines' or 'gemcitabine'.")
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise DatasetError(
            f"{path} is missing. Expected a table that `cytomad download phenotypes --out "
            f"{path.parent.parent}` fetches; download it, or check the folder."
        )
    stored = pd.read_csv(path)
    table = stored.drop(columns=NO_PHENOTYPES, errors="ignore")
    labels = list(dict.fromkeys(stored["AllLabel"]))
    table.insert(0, "label", pd.Categorical(stored["AllLabel"], labels))
    if name == "four_lines":
        table[LOGARITHMIC] = 10 ** table[LOGARITHMIC]
    else:
        table.insert(1, "dose", [_dose(label) for label in stored["AllLabel"]])
    return table


def _dose(label):
    """Return the number in a label: 0.00751 for G000751, 0 for Control_G."""
    digits = label.removeprefix("G")
    return float(f"{digits[0]}.{digits[1:]}") if digits.isdecimal() else 0.0


CYTOMAD = "MichelleLCK/CytoMAD", "068a9b5124ab33d83bef64f906b66134ce03bd57"
SOURCES = {
    "lung": Source(*CYTOMAD, LUNG.root_folder),
    "drug": Source(*CYTOMAD, DRUG.root_folder),
    "jurkat": Source(
        "minh-doan/MLCP",
        "4b4d93606e6b88654fc0a0697515d63102f60ee7",
        "Jurkat",
        "BSD 3-Clause, Copyright (c) 2017, minh-doan",
        "Blasi et al. 2016, Nature Communications 7, 10256; Hennig et al. 2017, Methods 112, 201",
        cut_montages,
    ),
    "phenotypes": Source(
        "MichelleLCK/DatasetVR",
        "5d15bd7660844fefdfb6bd00f2c9ac7ed17625ee",
        "Phenotypes",
        "MIT, Copyright (c) 2022 The University of Hong Kong",
        "the repository; the method is Lo et al. 2023, bioRxiv 2023.11.06.565732",
    ),
}
