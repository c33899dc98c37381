"""Results that need several trainings: the spread over seeds, and a batch left out of training.

- `compare`: the same training from several seeds, every recipe, all scores with their spread.
- `leave_batch_out`: train without one batch, then tell the classes apart in it.

Example
-------
>>> lung = "Dataset/7LungCancerDataset"
>>> comparison = compare(lung, "results/compare", PRESETS["study"], seeds=(0, 1, 2))
>>> print(comparison.summary())
>>> table = leave_batch_out(lung, "results/without_3", "Batch3", PRESETS["study"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd

from cytomad_lib import plots
from cytomad_lib.config import STUDY, Preset
from cytomad_lib.data.cells import CellFiles
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_table
from cytomad_lib.data.layouts import find_layout, is_simulated
from cytomad_lib.evaluation import probes
from cytomad_lib.evaluation.draw import baseline_bars
from cytomad_lib.evaluation.evaluate import REPORT, evaluate
from cytomad_lib.evaluation.pages import dataset_text, write_comparison_page
from cytomad_lib.evaluation.ranking import RANKED, rank_methods, ranking_text
from cytomad_lib.evaluation.results import (
    BASELINE,
    FILES,
    IMAGE_MEASURE,
    METHOD_NAMES,
    ORDER,
    baseline_remarks,
)
from cytomad_lib.evaluation.score import announce, load_with_truth_if_there, reference_features
from cytomad_lib.evaluation.tables import as_text, pivot_in_order, seed_summary
from cytomad_lib.prediction import predict
from cytomad_lib.runs import RECIPES
from cytomad_lib.training.recipes import check_recipes
from cytomad_lib.workflow import train

TABLE, PAGE, LEFT_OUT = "compare.csv", "compare.html", "left_out.csv"
TIME = "training time (min)"


@dataclass(eq=False)
class Comparison:
    """Scores of several trainings that differ in nothing but the seed.

    Parameters
    ----------
    table : DataFrame
        Tidy: `seed`, `method`, `kind` (stage, reference or baseline), `measure`, `value`, `chance`,
        `null_95`.
    notes : DataFrame
        By method: `needs` and the null control (first seed).
    remarks : list of str
        A sentence for each baseline that is missing, or that writes a batch in (first seed).
    page : Path
    """

    table: pd.DataFrame
    notes: pd.DataFrame
    remarks: list
    page: Path

    def methods_table(self):
        """Return mean ± s.d. over seeds: measures in rows, stages and references in columns."""
        rows = self.table[self.table["kind"] != BASELINE]
        summary = seed_summary(rows, ["measure", "method"], "value")
        wide = pivot_in_order(summary, "measure", "method", "mean ± s.d.")
        first = rows.groupby("measure", observed=True)[["chance", "null_95"]].max()
        wide.insert(0, "chance", first["chance"])
        wide.insert(1, "null 95 %", first["null_95"])
        return wide

    def ranking(self):
        """Return all methods, ranked by their means over the seeds; see `rank_methods`."""
        rows = self.table[self.table["measure"].isin(RANKED)]
        return rank_methods(rows, self.notes)

    def summary(self):
        """Return both tables as text."""
        seeds = self.table["seed"].unique()
        parts = [
            f"Mean ± s.d. over {len(seeds)} seeds ({', '.join(map(str, seeds))}), Test split",
            as_text(self.methods_table()),
        ]
        parts += ["", ranking_text(self.ranking()), *self.remarks]
        return "\n".join(parts)


def compare(
    data: Path | str,
    out: Path | str,
    preset: Preset = STUDY,
    seeds: Sequence[int] = (0, 1, 2),
    recipes: Sequence[str] = RECIPES,
    cells_per_group: int | None = None,
    verbose: int = 0,
    image_probe: bool = True,
    methods: Sequence[ModuleType] = (),
) -> Comparison:
    """Train and evaluate from several seeds, and put all scores together.

    Finished trainings in `out` are reused, and so are evaluations that cover all trained stages.
    So an interrupted comparison resumes when called again, and seeds can be added later.

    Parameters
    ----------
    data : path
        A dataset's folder, or the one above it.
    out : path
        Gets a folder `seed_N` per seed (a run, its scores and figures), `compare.csv` and
        `compare.html`.
    preset : Preset
    seeds : sequence of int
    recipes : sequence of {"published", "conditional"}
    cells_per_group : int, optional
        Training cells of each group; all by default.
    verbose : int
        As in `workflow.train`.
    image_probe, methods
        As in `evaluate.evaluate`. With methods of one's own, every seed is evaluated again: their
        files may have changed.

    Returns
    -------
    Comparison

    Raises
    ------
    CytomadError
        If no seed or the same seed twice is given, or a recipe is unknown.
    """
    check_recipes(recipes)
    if not seeds or len(set(seeds)) < len(seeds):
        raise CytomadError(f"The seeds are {list(seeds)}. Expected one or more, each once.")
    out = Path(out)
    tables, runs = [], {}
    for seed in seeds:
        folder = out / f"seed_{seed}"
        announce(verbose, f"Seed {seed}")
        run = train(data, folder, preset, seed, cells_per_group, verbose, recipes)
        if not methods and _is_evaluated(run, folder, image_probe):
            announce(verbose, f"Reusing the scores in {folder}")
        else:
            options = seed, verbose > 0, image_probe
            evaluate(run, data, "Test", folder, *options, methods=methods)
        tables.append(_seed_table(run, folder))
        runs[seed] = run
    table = pd.concat(tables, ignore_index=True)
    write_table(table, out / TABLE, index=False)
    first = out / f"seed_{seeds[0]}"
    notes = pd.read_csv(first / FILES["ranking"], index_col="method")
    notes = notes[["needs", "null_control", "null_control_95"]]
    remarks = baseline_remarks(pd.read_csv(first / FILES["baselines"]))
    comparison = Comparison(table, notes, remarks, out / PAGE)
    _, root = find_layout(data)
    dataset = dataset_text(root.name, is_simulated(root))
    figures = [first / "figures" / "cells.png", *_draw(table, out / "figures")]
    write_comparison_page(comparison, dataset, runs, figures)
    return comparison


def leave_batch_out(
    data, out, batch, preset=STUDY, recipes=RECIPES, seed=0, cells_per_group=None, verbose=0
):
    """Train a generator without one batch, then tell the classes apart in that batch.

    The probe is fitted on the Test cells of the other batches, and predicts the Test cells of the
    batch left out. Neither the generator nor the probe is trained on that batch. Cells of a class
    that no other batch holds cannot be predicted and do not count.

    Parameters
    ----------
    data : path
        A dataset's folder, or the one above it. Of the batch left out, only the Test split is read.
    out : path
        The run's folder, which also gets `left_out.csv`.
    batch : str
        Such as `"Batch3"`.
    preset, recipes, seed, cells_per_group, verbose
        As in `workflow.train`.

    Returns
    -------
    DataFrame
        One row per stage and reference (measures of the measured phase and the truth): `method`,
        `batch`, `accuracy` (each class counts the same), `chance`, `null_95`, the probes, `n_cells`
        that counted and `n_not_counted`, the cells of classes that are in no other batch.

    Raises
    ------
    CytomadError
        If the dataset has no Test cells of this batch, none of them can be predicted from the
        other batches, or a recipe is unknown. Nothing is trained then.
    """
    check_recipes(recipes)
    test = CellFiles(data, "Test")  # opens no file of another split
    there = list(test.labels["batch"].cat.remove_unused_categories().cat.categories)
    if batch not in there:
        raise CytomadError(
            f"There is no batch {batch!r} in the Test split of {test.root}. "
            f"Expected one of {', '.join(there)}."
        )
    probes.check_unseen(test.labels, batch)
    others = [name for name in there if name != batch]
    announce(verbose, f"Training without {batch}")
    if batch == test.layout.batches[0] and "published" in recipes:
        announce(
            verbose,
            f"Note: the published recipe makes all cells look like {batch}, the 'first batch', on "
            "which its classifiers are then not trained. To score that recipe, leave out another.",
        )
    run = train(data, out, preset, seed, cells_per_group, verbose, recipes, others)
    cells = load_with_truth_if_there(data, "Test", preset.image_size)
    methods = {
        METHOD_NAMES[stage]: predict(run.generator(stage), cells, verbose == 1).features
        for stage in run.stages()
    }
    total = int((cells.labels["batch"] == batch).sum())
    rows = []
    references = reference_features(cells, find_layout(data)[0])
    for name, features in (methods | references).items():
        announce(verbose, f"Probing {batch}: {name}")
        result = probes.unseen_batch_class_accuracy(features, cells.labels, seed, only=batch)
        row = {"method": name, "batch": batch} | result.as_row()
        rows.append(row | {"n_not_counted": total - result.n_cells})
    table = pd.DataFrame(rows).drop(columns="bits")
    write_table(table, Path(out) / LEFT_OUT, index=False)
    return table


# --- one seed --------------------------------------------------------------------------------


def _is_evaluated(run, folder, image_probe):
    """Return whether the folder's scores are complete and cover all trained stages."""
    if not (folder / REPORT).exists():  # it is written last
        return False
    scores, images, left_out = (
        pd.read_csv(folder / FILES[name]) for name in ("scores", "images", "not_scored")
    )
    asked = {*scores["measure"], *left_out["measure"]}
    names = {METHOD_NAMES[stage] for stage in run.stages()}
    return names <= set(images["method"]) and (IMAGE_MEASURE in asked or not image_probe)


def _seed_table(run, folder):
    """Return all numbers of one seed, tidy."""
    scores = pd.read_csv(folder / FILES["scores"]).rename(columns={"accuracy": "value"})
    scores = scores.sort_values("measure", key=lambda names: names.map(ORDER.index), kind="stable")
    images = pd.read_csv(folder / FILES["images"], index_col="method")
    images = images.rename_axis(columns="measure").stack().rename("value").reset_index()
    minutes = {METHOD_NAMES[stage]: run.training_seconds(stage) / 60 for stage in run.stages()}
    times = pd.Series(minutes, name="value").rename_axis("method").reset_index()
    kept = pd.read_csv(folder / FILES["biology"])
    table = pd.concat([scores, kept, images, times.assign(measure=TIME)], ignore_index=True)
    kinds = scores.drop_duplicates("method").set_index("method")["kind"]
    # The seed is that of the training, and of the probes.
    table = table.assign(kind=table["method"].map(kinds), seed=run.seed)
    return table[["seed", "method", "kind", "measure", "value", "chance", "null_95"]]


# --- all seeds -------------------------------------------------------------------------------


def _draw(table, folder):
    """Draw the scores of all seeds, if there are any; return the paths."""
    rows = table.rename(columns={"value": "accuracy"})
    rows = rows[rows["measure"].isin(ORDER)]
    if not len(rows):
        return []
    figures = {
        "scores.png": plots.score_bars(rows[rows["kind"] != BASELINE]),
        "baselines.png": baseline_bars(rows),
    }
    return [plots.save_figure(f, folder / name) for name, f in figures.items() if f is not None]
