"""Write simulated cells in the published folder layout.

Contents: :func:`simulate_dataset`, and the arguments that made the two datasets committed in
``Dataset/``: ``DEMO_DATASET`` (lung) and ``DEMO_DRUG_DATASET``.

Example
-------
>>> simulate_dataset("Dataset", **DEMO_DATASET)              # the committed demonstration data
>>> simulate_dataset("Dataset", **DEMO_DRUG_DATASET)         # and the other half of it
>>> simulate_dataset("Mine", image_size=64, cells_per_group={"Train": 5, "Test": 5},
...                  seed=7, groups=["Batch1/H69", "Batch3/H69"])
"""

import json
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from cytomad_lib.data.errors import SimulationError
from cytomad_lib.data.files import write_text
from cytomad_lib.data.layouts import (
    KINDS,
    LAYOUTS,
    NOTES_FILE,
    SPLITS,
    VARIABLE,
    is_simulated,
)
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.simulation.acquisition import (
    batch_table,
    check_image_size,
    parameter_table,
    simulate_cells,
)
from cytomad_lib.simulation.morphology import FIELD_OF_VIEW_UM, LUNG_LINES
from cytomad_lib.simulation.optics import WAVELENGTH_UM
from cytomad_lib.simulation.treatment import DRUGS, TREATED_LINE

SIMULATOR_VERSION = 2  # goes up whenever the same arguments give other images

# Values are stored as whole steps of a power of two, like the grey levels of a camera: brightness
# 0 to 2 and phase 0 to 4 rad are 256 levels each. The steps lie under the noise; they make files
# small, and equal on every machine. The truth has no noise to hide steps in, so it gets finer ones.
STEP = {"BF": 2.0**-7, "QPI": 2.0**-6, "QPI_TRUE": 2.0**-8}
# Cells in memory at full precision at one time.
CELLS_AT_ONCE = 64
LARGEST_FILE = 4e9  # bytes of a group's images of one split, which are in memory together
UNFINISHED = "unfinished"  # in the notes, until the last file is written

DEMO_DATASET = {
    "layout": "lung",
    "image_size": 64,
    "cells_per_group": {"Train": 110, "Valid": 10, "Test": 30},
    "seed": 26,
    "with_truth": ("Valid", "Test"),
}
DEMO_DRUG_DATASET = DEMO_DATASET | {
    "layout": "drug",
    "cells_per_group": {"Train": 40, "Valid": 6, "Test": 30},
    "seed": 110,
}


def simulate_dataset(
    out,
    layout="lung",
    image_size=64,
    cells_per_group=None,
    seed=0,
    groups=None,
    with_truth=SPLITS,
    batch_strength=1.0,
    overwrite=False,
    progress=True,
):
    """Simulate a dataset and write it as the published one is laid out.

    An interrupted simulation goes on when called again with the same arguments.

    Each cell depends on the seed and its own address (batch, class, dose, split, index) only: any
    part of a dataset, made on its own, equals that part of the whole.

    Parameters
    ----------
    out : path
        Folder that gets ``7LungCancerDataset/`` or ``H2170DrugTreatmentDataset/``.
    layout : {"lung", "drug"}
        Seven cell lines, or one line treated with three drugs at five doses each.
    image_size : int
        Pixels along each side of the 45 um field; at least 16.
    cells_per_group : mapping of str to int, optional
        Cells in each group for each split, e.g. ``{"Train": 60, "Valid": 10, "Test": 30}`` (the
        default). Splits that are left out or 0 are not written.
    seed : int
        Any whole number from 0.
    groups : sequence of str, optional
        Names such as ``"Batch1/H69"`` or ``"B1/Docetaxel/D3"``; None = all groups of the layout.
    with_truth : sequence of str
        Splits for which ``*_QPI_TRUE.mat`` is written; empty or False is none.
    batch_strength : float
        Scales the batch effects: 0 = none, 1 = the usual spread.
    overwrite : bool
        Replace the simulated dataset that is there: all its files are removed first, so that cells
        of two simulations never mix. Files without a ``simulation.json`` beside them may be
        measurements; they are never replaced.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pathlib.Path
        The dataset's own folder.

    Raises
    ------
    SimulationError
        For a layout, group, split or number that cannot be simulated.
    FileExistsError
        If files of the dataset are there already and ``overwrite`` is False, or they may be
        measurements. Nothing is written then.
    """
    arguments = _check_arguments(
        layout, image_size, cells_per_group, seed, groups, with_truth, batch_strength
    )
    found, counts = LAYOUTS[layout], arguments["cells_per_group"]
    notes = _notes(arguments, found)
    begun = {"what": notes["what"], UNFINISHED: True} | notes

    root = Path(out) / found.root_folder
    if _read_notes(root) != json.loads(json.dumps(begun)):
        _make_room(root, found, overwrite)
        # The notes come first: an interrupted simulation is then known as one.
        _write_notes(root, begun)
    chosen = [group for group in found.groups if group.name in arguments["groups"]]
    jobs = [(group, split) for group in chosen for split in SPLITS if split in counts]
    for group, split in tqdm(jobs, disable=not progress, desc="simulating", unit="file"):
        kinds = KINDS if split in arguments["with_truth"] else ("BF", "QPI")
        paths = {kind: root / group.file(split, kind) for kind in kinds}
        if all(path.exists() for path in paths.values()):
            continue  # whole, and written by the same simulation before it was interrupted
        for kind, images in _simulate_split(group, split, kinds, arguments).items():
            # MATLAB's order is height x width x cells.
            write_mat(paths[kind], {VARIABLE[kind]: np.moveaxis(images, 0, -1)})
    _write_notes(root, notes)
    return root


def is_unfinished(root):
    """Say whether a dataset's own folder holds a simulation that was interrupted."""
    return UNFINISHED in _read_notes(Path(root))


def _read_notes(root):
    """Return the notes of a simulated dataset; empty if there are none, or not of ours."""
    try:
        return dict(json.loads((root / NOTES_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_notes(root, notes):
    write_text(root / NOTES_FILE, json.dumps(notes, indent=2, ensure_ascii=False) + "\n")


def _simulate_split(group, split, kinds, arguments):
    """Simulate one group's cells of one split: rounded float32 ``(cells, size, size)`` per kind."""
    count, size = arguments["cells_per_group"][split], arguments["image_size"]
    options = {name: arguments[name] for name in ("seed", "image_size", "batch_strength")}
    options |= {"batch": group.batch, "split": split, "dose": group.dose}
    stacks = {kind: np.empty((count, size, size), np.float32) for kind in kinds}
    for start in range(0, count, CELLS_AT_ONCE):
        indices = range(start, min(start + CELLS_AT_ONCE, count))
        cells = simulate_cells(group.class_name, indices, **options)
        images = {"BF": cells.brightfield, "QPI": cells.qpi, "QPI_TRUE": cells.truth}
        for kind, stack in stacks.items():
            stack[indices.start : indices.stop] = round_to_step(images[kind], kind)
    return stacks


def round_to_step(images, kind):
    """Round images to the steps that their files hold, as float32; see ``STEP``."""
    steps = np.rint(images / STEP[kind]) + 0.0  # + 0.0 turns -0 into 0
    return (steps * STEP[kind]).astype(np.float32)


def _check_arguments(layout, image_size, cells_per_group, seed, groups, with_truth, batch_strength):
    """Return what decides the cells, as the notes hold it; refuse what cannot be simulated."""
    if layout not in LAYOUTS:
        raise SimulationError(
            f"layout is {layout!r}; the simulator makes {' and '.join(map(repr, LAYOUTS))}. "
            "Choose one of these."
        )
    known, truth_splits = [group.name for group in LAYOUTS[layout].groups], with_truth or ()
    groups = known if groups is None else groups
    _refuse_unknown("groups", groups, known)
    _refuse_unknown("with_truth", truth_splits or SPLITS, SPLITS)
    if not np.isfinite(batch_strength):
        raise SimulationError(
            f"batch_strength is {batch_strength!r}; expected a number, such as 1.0."
        )
    return {
        "layout": layout,
        "image_size": int(image_size),
        "cells_per_group": _check_counts(cells_per_group, image_size),
        "seed": seed,
        "groups": [name for name in known if name in groups],
        "with_truth": [split for split in SPLITS if split in truth_splits],
        "batch_strength": float(batch_strength),
    }


def _refuse_unknown(argument, names, known):
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise SimulationError(
            f"{argument} names {', '.join(map(repr, unknown)) or 'nothing'}; expected some of: "
            f"{', '.join(known)}."
        )


def _check_counts(cells_per_group, image_size):
    check_image_size(image_size)
    if cells_per_group is None:
        return {"Train": 60, "Valid": 10, "Test": 30}
    _refuse_unknown("cells_per_group", cells_per_group, SPLITS)
    for split, count in cells_per_group.items():
        if count != int(count) or count < 0:
            raise SimulationError(
                f"cells_per_group[{split!r}] is {count!r}; it has to be a whole number, 0 or more."
            )
        if 4 * count * image_size**2 > LARGEST_FILE:
            raise SimulationError(
                f"cells_per_group[{split!r}] is {count}: with {image_size} x {image_size} pixels, "
                f"{4 * count * image_size**2 / 1e9:.0f} GB per file. Expected up to "
                f"{LARGEST_FILE / 1e9:.0f} GB; ask for fewer cells or smaller images."
            )
    if not any(cells_per_group.values()):
        raise SimulationError("cells_per_group asks for no cells; give at least one split a count.")
    return {split: int(cells_per_group[split]) for split in SPLITS if cells_per_group.get(split)}


def _make_room(root, layout, overwrite):
    """Refuse a folder that holds files of the dataset, or clear a simulated one."""
    names = [g.file(s, k) for g in layout.groups for s in SPLITS for k in KINDS]
    there = [root / name for name in [NOTES_FILE, *names] if (root / name).exists()]
    if not there:
        return
    if not is_simulated(root):
        raise FileExistsError(
            f"{there[0]} is there already, and {root} has no {NOTES_FILE}: these may be "
            "measurements, which a simulation never replaces. Choose another folder."
        )
    if not overwrite:
        raise FileExistsError(
            f"{root} holds a simulated dataset already ({len(there)} files, such as {there[-1]}). "
            "Choose another folder, or overwrite=True to replace it."
        )
    _write_notes(root, {UNFINISHED: True})  # from now on; and it is none that can be gone on with
    for path in there:
        if path.name != NOTES_FILE:
            path.unlink()


def _notes(arguments, layout):
    """Say what the dataset was made with; the same arguments give the same text."""
    table = batch_table(arguments["seed"], layout, arguments["batch_strength"])
    return {
        "what": "SIMULATED cells, not measurements.",
        "simulator_version": SIMULATOR_VERSION,
        "arguments": arguments,
        "wavelength_um": WAVELENGTH_UM,
        "field_of_view_um": FIELD_OF_VIEW_UM,
        "pixel_um": FIELD_OF_VIEW_UM / arguments["image_size"],
        "units": {"BF": "relative brightness", "QPI": "rad", "QPI_TRUE": "rad"},
        "step": STEP,
        "parameters": parameter_table()[["unit", "meaning"]].to_dict("index"),
        # Rounded, so that the last bits of a processor's arithmetic do not show.
        "batches": {
            batch: {name: round(float(value), 6) + 0.0 for name, value in row.items()}
            for batch, row in table.iterrows()
        },
        **_kinds(layout),
    }


def _kinds(layout):
    """Say what kinds of cells a dataset holds, and what was done to them."""
    if layout.name == "lung":
        return {"cell_lines": {name: vars(line) for name, line in LUNG_LINES.items()}}
    return {
        "cell_lines": {TREATED_LINE: vars(LUNG_LINES[TREATED_LINE])},
        "drugs": {name: vars(drug) for name, drug in DRUGS.items()},
    }
