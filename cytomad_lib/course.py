"""What all notebooks share: is this machine ready, where are the data and the trained models.

- `machine_table`: versions, memory, processors, GPU, and whether they will do.
- `choose_preset`: `workshop` where there is a GPU, else `demo`.
- `data`, `trained`, `fresh_folder`: the demonstration data, models that come with the kit, and a
  folder for what a notebook writes.
- `load_with_truth`: cells and their truth, or cells without one. The environment variable
  ``CYTOMAD_DATA`` switches the notebooks from the demonstration data to measured cells.
- `real_cells`: public cells measured by others, fetched where there is a connection.
- `same_cells_on_every_day`: what no experiment can do, but a simulation can.
- `check`: whether an answer is right.

Example
-------
>>> machine_table()
>>> run = trained("lung")
>>> generator = run.generator("pretraining")
"""

import ast
import os
import platform
import re
import shutil
import tomllib
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from IPython import get_ipython
from joblib import cpu_count

from cytomad_lib.backend import keras
from cytomad_lib.config import DEMO, WORKSHOP
from cytomad_lib.data.cells import CellImages, load_cells
from cytomad_lib.data.download import download_dataset
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.fetch import DownloadError
from cytomad_lib.data.layouts import LAYOUTS, LUNG, find_layout, is_simulated
from cytomad_lib.devices import find_gpus
from cytomad_lib.runs import Run
from cytomad_lib.simulation import DEMO_DATASET, simulate_cells
from cytomad_lib.simulation.morphology import FIELD_OF_VIEW_UM
from cytomad_lib.workflow import find_data

# Where Linux says how much memory a container may use: version 2 of its control groups, and 1.
MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
MEMORY_LIMIT_FILES = [Path("/sys/fs/cgroup") / name for name in MEMORY_LIMITS]

MEASURED = "CYTOMAD_DATA"  # names the folder of measured cells that the notebooks use instead
NEEDED_MEMORY_GB = 2
# One experiment holds three phases of the cell cycle, the other a single one.
JURKAT_GROUPS = (
    "Experiment_1/G1", "Experiment_1/S_phase", "Experiment_1/G2", "Experiment_2/G1/CP0001",
)  # fmt: skip
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TRAINED = NOTEBOOKS / "trained"
ANSWERS = Path(__file__).with_name("answers.toml")
RIGHT, NEARLY = 0.02, 0.2  # of the right number

NEEDED_VERSIONS = {"keras": "3.13.2", "tensorflow": "2.20", "torch": "2.4", "numpy": "2.0"}
NEEDED_VERSIONS |= {"Python": "3.11"}


def machine_table():
    """Say what this machine has, beside what the notebooks need.

    Returns
    -------
    DataFrame
        Columns `found`, `needed` and `ready` (yes, no, or that it does without); one row each for
        Python, the packages that matter, processor cores, memory and GPU.
    """
    memory, gpus = memory_gb(), find_gpus()
    enough = memory > 0.9 * NEEDED_MEMORY_GB
    rows = []
    for name in ("Python", "keras", keras.backend.backend(), "numpy"):
        found, needed = _version_of(name), NEEDED_VERSIONS[name]
        rows.append((name, found, f"{needed} or later", _yes(_is_at_least(found, needed))))
    rows += [
        ("processor cores", str(cpu_count()), "1, better 2", "yes"),
        ("memory", f"{memory:.0f} GB", f"{NEEDED_MEMORY_GB} GB", _yes(enough)),
        ("GPU", ", ".join(gpus) or "none", "not needed", "yes" if gpus else "works without"),
    ]
    return pd.DataFrame(rows, columns=["", "found", "needed", "ready"]).set_index("")


def memory_gb():
    """Return the memory of this machine in GB, or of the container it is."""
    limits = [psutil.virtual_memory().total]
    for file in MEMORY_LIMIT_FILES:
        with suppress(OSError, ValueError):  # no container, or one without a limit
            limits.append(int(file.read_text()))
    return min(limits) / 1e9


def choose_preset():
    """Return the preset that suits this machine: `workshop` with a GPU, `demo` without."""
    return WORKSHOP if find_gpus() else DEMO


def data(name):
    """Return the folder of a demonstration dataset, or of the measured one that replaces it.

    The environment variable ``CYTOMAD_DATA`` names a folder with measured cells in the published
    layout, such as `download` and `subsample` write. Checks of numbers then print a line where
    they fail: they were written for the simulated cells.

    Parameters
    ----------
    name : {"lung", "drug"}
        Seven lung cancer cell lines, or the response of one line to three drugs.

    Returns
    -------
    Path
        Relative to the working folder: it reads the same on every machine.

    Raises
    ------
    CytomadError
        If it is not there.
    """
    measured = os.environ.get(MEASURED)
    if not measured:
        return relative_to_here(find_data(name))
    _print_failed_checks()
    folder = Path(measured) / LAYOUTS[name].root_folder
    if not folder.is_dir():
        raise CytomadError(
            f"{MEASURED} is set to {measured}, which has no folder {folder.name}. Expected "
            f"measured cells there, such as `download {name} --out {measured}` fetches; or unset "
            f"{MEASURED} to use the demonstration data."
        )
    return relative_to_here(folder)


def load_with_truth(folder, split, cells_per_group=None, image_size=None):
    """Load cells with their batch-free truth; measured cells get their measured phase instead.

    Parameters
    ----------
    folder, split, cells_per_group, image_size
        As in `load_cells`.

    Returns
    -------
    CellImages
        With `truth`. A line is printed if the measured phase stands in for it.
    """
    simulated = is_simulated(find_layout(folder)[1])
    cells = load_cells(folder, split, cells_per_group, image_size, with_truth=simulated)
    if simulated:
        return cells
    print(
        "These cells were measured: nobody knows their true phase. Below, the measured phase, with "
        "the marks of its day, stands in wherever the text says truth."
    )
    return replace(cells, truth=cells.qpi)


class _ChecksThatPrint(ast.NodeTransformer):
    """Turns `assert test, message` into `if not test: print(message)`."""

    def visit_Assert(self, node):
        words = ast.Constant(f"Does not hold for these cells: {ast.unparse(node.test)}")
        told = ast.Call(ast.Name("print", ast.Load()), [words], [])
        failed = ast.UnaryOp(ast.Not(), node.test)
        return ast.fix_missing_locations(
            ast.copy_location(ast.If(failed, [ast.Expr(told)], []), node)
        )


def _print_failed_checks():
    """In a notebook, let a check that fails print a line instead of stopping."""
    shell = get_ipython()
    if shell and not any(isinstance(t, _ChecksThatPrint) for t in shell.ast_transformers):
        shell.ast_transformers.append(_ChecksThatPrint())


def trained(name):
    """Open the trained models that come with the kit.

    They were trained by the `demo` preset on all cells of the demonstration dataset; see the
    README in their folder.

    Parameters
    ----------
    name : {"lung", "drug"}

    Returns
    -------
    Run
        With the stages "pretraining", "published" and "conditional".

    Raises
    ------
    CytomadError
        If they are not there.
    """
    if name not in LAYOUTS:
        raise CytomadError(
            f"There are no trained models {name!r}. Expected {' or '.join(map(repr, LAYOUTS))}."
        )
    folder = relative_to_here(TRAINED / name)
    if not (folder / "run.json").is_file():
        raise CytomadError(
            f"There is no training in {folder}. Expected the trained models that come with the "
            "notebooks; start from a complete copy of the kit, or train your own, by "
            f"`python -m cytomad_lib train {name} --recipe both --out results/{name}`, and open "
            f"them by Run.open('results/{name}')."
        )
    return Run.open(folder)


def real_cells(name):
    """Fetch public cells into `results/real`, or tell why they are missing.

    Of `jurkat`, only `JURKAT_GROUPS` are fetched. The environment variable ``CYTOMAD_MIRROR`` names
    another server.

    Parameters
    ----------
    name : {"phenotypes", "jurkat"}

    Returns
    -------
    Path or None
        The dataset's folder below the working folder; None if a file could not be fetched.
    """
    groups = JURKAT_GROUPS if name == "jurkat" else None
    mirror = os.environ.get("CYTOMAD_MIRROR")
    try:
        return download_dataset(name, "results/real", None, groups, mirror, report=print)
    except DownloadError as error:
        print(f"The {name} cells are missing: {error}\nThe cells below that need them are skipped.")
        return None


def same_cells_on_every_day(class_name, n=8):
    """Simulate cells of the lung demonstration dataset, each measured on all of its seven days.

    Parameters
    ----------
    class_name : str
        Cell line.
    n : int
        Different cells: the first ones of the Test split, of the first day that has the line.

    Returns
    -------
    CellImages
        Day by day, on each the same `n` cells in the same order, with their truth. The `batch` of
        a row is the day that measured; `cell` says which cell it is.

    Raises
    ------
    SimulationError
        For a line that the simulator does not know.
    """
    size, seed = DEMO_DATASET["image_size"], DEMO_DATASET["seed"]
    own_day = next(iter(LUNG.batches_of_class(class_name)), None)
    days = [
        simulate_cells(class_name, n, batch, seed, size, seen_in=own_day) for batch in LUNG.batches
    ]
    labels = pd.DataFrame(
        {
            "batch": pd.Categorical(np.repeat(LUNG.batches, n), LUNG.batches),
            "class_name": pd.Categorical([class_name] * n * len(days), LUNG.classes),
            "cell": np.tile(np.arange(n), len(days)),
        }
    )
    images = {
        name: np.concatenate([getattr(day, name) for day in days])[..., None].astype(np.float32)
        for name in ("brightfield", "qpi", "truth")
    }
    optics = {"pixel_size_um": FIELD_OF_VIEW_UM / size, "wavelength_um": LUNG.wavelength_um}
    return CellImages(labels=labels, **optics, **images)


def fresh_folder(name):
    """Make an empty folder `results/<name>` for what a notebook writes; what it held is removed.

    Returns
    -------
    Path
        Below the working folder.

    Raises
    ------
    CytomadError
        If the name is not that of one folder, or what is there cannot be removed.
    """
    if not name or Path(name).name != name or name in (".", "..") or "\\" in name:
        raise CytomadError(f"{name!r} is no name of a folder. Expected one such as '04_training'.")
    folder = Path("results") / name
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise CytomadError(
            f"{folder} cannot be emptied: {error.strerror}. Expected a folder whose files no other "
            "program uses; close these, or remove it by hand."
        ) from error
    return folder


def check(exercise, answer):
    """Print in one line whether an answer to an exercise is right, nearly right or wrong.

    Parameters
    ----------
    exercise : str
        Notebook and number, such as "02-1".
    answer : str, number, or sequence of numbers
        None: nothing was answered yet.

    Raises
    ------
    CytomadError
        If there is no such exercise.
    """
    known = tomllib.loads(ANSWERS.read_text(encoding="utf-8"))
    if exercise not in known:
        raise CytomadError(
            f"There is no exercise {exercise!r}. Expected one of {', '.join(known)}."
        )
    verdict = "no answer yet" if answer is None else _verdict(known[exercise], answer)
    hint = f" Hint: {known[exercise]['hint']}" if verdict in ("nearly", "wrong") else ""
    print(f"{exercise}: {verdict}.{hint}")


def _verdict(known, answer):
    expected, beside = known["answer"], known.get("nearly", ())
    if isinstance(expected, str):
        given = str(answer).strip().casefold()
        return "right" if given == expected else "nearly" if given in beside else "wrong"
    try:
        error = np.max(np.abs(np.asarray(answer, float) / np.asarray(expected) - 1))
    except (TypeError, ValueError):  # no numbers, or too many
        return "wrong"
    return "right" if error <= RIGHT else "nearly" if error <= NEARLY else "wrong"


def _version_of(package):
    if package == "Python":
        return platform.python_version()
    for name in (package, f"{package}-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "missing"


def _is_at_least(found, needed):
    # "2.20rc1" and "2.4.0+cu121" are versions too; "missing" is none.
    numbers = [re.match(r"(\d+)\.(\d+)", version) for version in (found, needed)]
    if None in numbers:
        return False
    found, needed = (tuple(map(int, number.groups())) for number in numbers)
    return found >= needed


def _yes(true):
    return "yes" if true else "NO"


def relative_to_here(folder):
    """Return the way to a folder from here: shorter, and the same on every machine."""
    try:
        return Path(os.path.relpath(folder))
    except ValueError:
        return Path(folder)  # on another drive of Windows
