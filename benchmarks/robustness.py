"""What batch removal keeps when labels are wrong or missing, or batches differ in another way.

    python -m benchmarks.robustness --out results/robustness

Two parts, each a table that is printed and written as CSV. A second call reuses what is finished.

* `labels.csv`: the features of the conditional recipe, trained with all class labels, with every
  fifth one wrong (any class, or one of the same day), with one class withheld, and with none. A
  second seed shows what chance does.
* `effects.csv`: both recipes on days that differ by effects that the kit's simulator does not have
  and that nothing was tuned on: gamma, magnification, vignetting, motion blur, dust and shift.

Example
-------
>>> rng = np.random.default_rng(0)
>>> other_effects(np.ones((2, 64, 64)), np.zeros((2, 64, 64)), draw_effects(rng))[0].shape
(2, 64, 64)
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import affine_transform, uniform_filter1d

from cytomad_lib.conditional import recipe as conditional
from cytomad_lib.config import DEMO, STUDY
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.files import write_table
from cytomad_lib.data.layouts import LUNG, VARIABLE
from cytomad_lib.data.matfiles import read_mat, write_mat
from cytomad_lib.evaluation.biology import biology_kept
from cytomad_lib.evaluation.biophysics import measure_images
from cytomad_lib.evaluation.compare import compare
from cytomad_lib.evaluation.probes import class_accuracy, score_results
from cytomad_lib.prediction import predict
from cytomad_lib.runs import Run
from cytomad_lib.simulation import simulate_dataset
from cytomad_lib.training.recipes import pretrain

SEED = 110  # of the simulated cells; no other dataset of the kit has it
PRESETS = {"demo": DEMO, "study": STUDY}
WITHHELD = "H1975"
DUST_GRAINS = 6
DUST_SIGMA = 1.2  # pixels


# --- labels ----------------------------------------------------------------------------------


def without_class(cells):
    """Give all cells one and the same class: the recipe then has no class to keep."""
    one = pd.Categorical(["cell"] * len(cells))
    return replace(cells, labels=cells.labels.assign(class_name=one))


def spoil(cells):
    """Give a fifth of the cells another class, drawn at random."""
    return replace(cells, labels=with_wrong_labels(cells.labels))


def misfile(cells):
    """Give a fifth of the cells of each batch another class of that batch."""
    labels = cells.labels.copy()
    for _, rows in cells.labels.groupby("batch", observed=True):
        if rows["class_name"].nunique() > 1:
            labels.loc[rows.index, "class_name"] = with_wrong_labels(rows)["class_name"]
    return replace(cells, labels=labels)


def with_wrong_labels(labels, share=0.2, seed=0):
    """Return labels in which a share of the cells has another class, drawn at random (M8).

    A training on them, scored with the right labels, shows how much a method relies on them.

    Parameters
    ----------
    labels : pandas.DataFrame
        Column `class_name`, categorical, with at least two categories.
    share : float
        0 to 1.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A copy with the same categories; exactly this share of the cells, rounded, is wrong.
    """
    rng = np.random.default_rng(seed)
    classes = labels["class_name"].cat
    there = np.unique(classes.codes)
    place = np.searchsorted(there, classes.codes)
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    place[wrong] += rng.integers(1, len(there), len(wrong))
    codes = there[place % len(there)]
    return labels.assign(
        class_name=pd.Categorical.from_codes(codes, dtype=labels["class_name"].dtype)
    )


def withheld_class(features, truth_measures, labels, class_name, seed=0):
    """Return how well a class is told apart that the method had no label of (M4).

    Parameters
    ----------
    features : array, (cells, features)
        From a method that was trained without the labels of `class_name`.
    truth_measures, labels
        As for `biology_kept`, of cells of all classes.
    class_name : str
    seed : int
        Of the probes.

    Returns
    -------
    share, chance : float
        The share of the class's cells that the strongest probe recognises among all classes,
        divided by the same share of the truth's measures; chance is that of a guess.
    """
    found, ceiling = (
        class_accuracy(np.nan_to_num(np.asarray(values, dtype=float)), labels, seed, 0)
        for values in (features, truth_measures)
    )
    best = ceiling.by_group[class_name]
    return float(found.by_group[class_name] / best), float(found.chance / best)


def score_labels(data, out, preset):
    """Train the features with four kinds of labels; return a table with a row per training."""
    train, valid = (load_cells(data, split, image_size=64) for split in ("Train", "Valid"))
    rest = [c for c in LUNG.classes if c != WITHHELD]
    fewer = [load_cells(data, s, image_size=64, classes=rest) for s in ("Train", "Valid")]
    trainings = {
        "all labels": (train, valid, 0),
        "all labels, another seed": (train, valid, 1),
        "every fifth label wrong, any class": (spoil(train), spoil(valid), 0),
        "every fifth label wrong, a class of the day": (misfile(train), misfile(valid), 0),
        f"{WITHHELD} withheld": (*fewer, 0),
        "no class labels": (without_class(train), without_class(valid), 0),
    }
    test = load_cells(data, "Test", image_size=64, with_truth=True)
    truth = measure_images(test.truth, test)
    rows = {"measures of the truth": score_features(truth.fillna(0).to_numpy(), truth, test.labels)}
    for name, (cells, others, seed) in trainings.items():
        print(f"\n{name}", flush=True)
        folder = Path(out) / name.replace(" ", "_").replace(",", "")
        features = train_features(folder, preset, cells, others, test, seed)
        rows[name] = score_features(features, truth, test.labels)
        print(pd.Series(rows[name]).round(3).to_string(), flush=True)
    return pd.DataFrame.from_dict(rows, orient="index")


def train_features(folder, preset, train, valid, test, seed):
    """Train features, which depend on no image; return those of the Test cells."""
    recipe = replace(preset.conditional, image_epochs=1)
    short = replace(preset, pretraining_epochs=1, conditional=recipe)
    run = Run.create(folder, short, train, "lung", seed=seed)
    pretrain(run, train, valid)
    conditional.remove_batches(run, train, valid, verbose=1)
    return predict(run.generator("conditional"), test).features


def score_features(features, truth, labels):
    """Score features by what is removed and what is kept."""
    removed = {result.measure: result.accuracy for result in score_results(features, labels, 0, 0)}
    return removed | {
        "biology": biology_kept(features, truth, labels).mean(),
        "biology on a new day": biology_kept(features, truth, labels, unseen_batch=True).mean(),
        f"{WITHHELD}, as a share of the truth's": withheld_class(features, truth, labels, WITHHELD)[
            0
        ],
    }


# --- another kind of batch effect ------------------------------------------------------------


def draw_effects(rng):
    """Draw the effects of one day."""
    return {
        "gamma": rng.uniform(0.7, 1.4),
        "magnification": rng.uniform(0.94, 1.06),
        "vignetting": rng.uniform(0, 0.3),  # light lost in the corners
        "motion": rng.integers(1, 5),  # pixels
        "shift": rng.uniform(-3, 3, 2),  # pixels
        "dust": rng.uniform(0, 64, (DUST_GRAINS, 2)),
        "phase_gamma": rng.uniform(0.8, 1.25),
    }


def other_effects(brightfield, phase, effects):
    """Change images as a day does.

    Parameters
    ----------
    brightfield, phase : array (cells, height, width)
        Of a day without batch effect; the empty field is 1, the phase in radians.
    effects : dict
        From `draw_effects`.

    Returns
    -------
    brightfield, phase : array (cells, height, width)
    """
    side = phase.shape[-1]
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    dust = np.zeros((side, side))
    for y, x in effects["dust"]:
        distance = (np.arange(side)[:, None] - y) ** 2 + (np.arange(side) - x) ** 2
        dust += 0.2 * np.exp(-distance / (2 * DUST_SIGMA**2))
    light = 1 - effects["vignetting"] * (axis[:, None] ** 2 + axis**2) / 2 - dust
    moved = [
        [affine_transform(image, *_stretch(effects, side), mode="nearest", order=1) for image in s]
        for s in (brightfield, phase)
    ]
    brightfield, phase = (uniform_filter1d(stack, effects["motion"], axis=2) for stack in moved)
    brightfield = np.maximum(brightfield, 0) ** effects["gamma"] * light
    return brightfield, np.sign(phase) * np.abs(phase) ** effects["phase_gamma"]


def _stretch(effects, side):
    """Return matrix and offset that magnify about the centre and shift."""
    scale, centre = 1 / effects["magnification"], (side - 1) / 2
    return np.full(2, scale), centre - scale * (centre + effects["shift"])


def write_other_days(out, cells_per_group, seed=SEED):
    """Simulate cells without batch effect and let each day change its files; return the folder."""
    root = Path(out) / LUNG.root_folder
    if (root / "effects.txt").exists():
        return root
    simulate_dataset(
        out, "lung", cells_per_group=cells_per_group, seed=seed, batch_strength=0, overwrite=True
    )
    rng = np.random.default_rng(seed)
    for batch in LUNG.batches:
        effects = draw_effects(rng)
        for bright in sorted((root / batch).rglob("*_BF.mat")):
            files = {"BF": bright, "QPI": bright.with_name(bright.name.replace("_BF", "_QPI"))}
            stacks = [read_mat(path, VARIABLE[kind]) for kind, path in files.items()]
            changed = other_effects(*stacks, effects)
            for (kind, path), images in zip(files.items(), changed, strict=True):
                stored = np.moveaxis(images, 0, -1).astype("float32")
                write_mat(path, {VARIABLE[kind]: stored})
    (root / "effects.txt").write_text("All files hold the effects of their day.\n")
    return root


# --- command line ----------------------------------------------------------------------------


def cells_per_group(text):
    """Return the cells of each split, such as of "300,20,60", as `simulate_dataset` takes them."""
    return dict(zip(("Train", "Valid", "Test"), map(int, text.split(",")), strict=True))


def simulated_cells(out, counts, seed=SEED):
    """Simulate the lung dataset below `out`, unless it is there; return its folder."""
    root = Path(out) / LUNG.root_folder
    if not root.exists():
        simulate_dataset(out, "lung", cells_per_group=counts, seed=seed)
    return root


def main():
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="study")
    parser.add_argument(
        "--cells", type=cells_per_group, default="300,20,60", help="of a group: Train, Valid, Test"
    )
    parser.add_argument("--parts", default="labels,effects")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    if "labels" in options.parts:
        data = simulated_cells(options.out / "cells", options.cells)
        table = score_labels(data, options.out / "labels", preset)
        write_table(table.round(4), options.out / "labels.csv", index_label="labels")
        print(table.round(3).to_string())
    if "effects" in options.parts:
        data = write_other_days(options.out / "other_days", options.cells)
        comparison = compare(data, options.out / "effects", preset, (0,), verbose=1)
        write_table(comparison.table, options.out / "effects.csv", index=False)
        print(comparison.summary())


if __name__ == "__main__":
    main()
