"""Score a training run on a split, by probes trained after the generator, and draw the figures.

`evaluate` scores side by side

* every trained stage: its features, its images (a new CNN, and probes on the pixels), its images
  beside the measured phase and, for simulated cells, beside the batch-free truth;
* the references: biophysical measures of the measured phase and of the truth. Those of the truth
  are the ceiling;
* the baselines: biophysical measures of the predicted images, well-known corrections of the
  pretrained features, and what other networks give (`evaluation.baselines`).

It writes

* `scores.csv`: probes, one row per method and measure;
* `image_scores.csv`: means over the cells, one row per method;
* `cell_measures.csv`: errors of area, dry mass and mean phase;
* `biology.csv`: how much of what the cells of a class differ by is kept (`evaluation.biology`);
* `ranking.csv`: all methods, ranked by the worst of batch, class and biology;
* `mixing.csv`: how well batches are mixed inside the classes;
* `baselines.csv`: what each baseline uses, or why it is missing, and whether it writes a batch in
  where there is none (`baselines.null_control`);
* `not_scored.csv`: what could not be scored of this design (a class with one batch, a group of few
  cells), and why;
* `dose_order.csv`, `dose_distance.csv`: for a dataset with doses, which no training used, how well
  the features order them, and how far each one is from untreated cells;
* `predictions/`: of each stage, features, measures and the map as AnnData, and the images as
  OME-TIFF (`evaluation.exchange`);
* `figures/` and `report.html`.

Example
-------
>>> evaluation = evaluate(run, "Dataset/7LungCancerDataset", "Test", "results/run", progress=True)
>>> print(evaluation.summary())
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cytomad_lib.data.files import write_table
from cytomad_lib.data.layouts import find_layout
from cytomad_lib.evaluation.draw import draw
from cytomad_lib.evaluation.exchange import writers
from cytomad_lib.evaluation.pages import write_evaluation_page
from cytomad_lib.evaluation.results import FILES, METHOD_NAMES, Evaluation
from cytomad_lib.evaluation.score import announce, score
from cytomad_lib.runs import Run

REPORT = "report.html"


def evaluate(
    run: Run,
    data: Path | str,
    split: str,
    out: Path | str,
    seed: int = 0,
    progress: bool = False,
    image_probe: bool = True,
    baselines: bool = True,
    methods: Sequence[ModuleType] = (),
) -> Evaluation:
    """Score every trained stage of a run on a split, draw the figures, and write the report.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split : {"Train", "Valid", "Test"}
        Only Test was used for nothing else.
    out : path
        Folder that gets the tables, `figures/` and `report.html`.
    seed : int
        Of the probes.
    progress : bool
        Print what is being done.
    image_probe : bool
        Also probe the images for the batch, by a new CNN and by the pixels; about half a minute
        per method.
    baselines : bool
        Also score the baselines of the field.
    methods : sequence of modules
        Methods of one's own to be scored beside them; see `baselines.load_method`.

    Returns
    -------
    Evaluation
        Of a design of which not all can be scored (one batch, one class, few cells), what can be;
        its `not_scored` says what is left out.

    Raises
    ------
    CytomadError
        If the run has no trained stage, the dataset is of another kind than that of the run, or
        the split is unknown or has no measured target.
    """
    evaluation = score(run, data, split, seed, progress, image_probe, baselines, methods)
    announce(progress, "Drawing figures")
    layout, _ = find_layout(data)
    evaluation.figures = draw(evaluation, run, layout, Path(out) / "figures")
    write(evaluation, run, Path(out))
    write_predictions(evaluation, layout, Path(out) / "predictions")
    return evaluation


def write(evaluation, run, out):
    """Write the tables and the report of an evaluation into a folder."""
    for name, file in FILES.items():
        table = getattr(evaluation, name)
        if len(table) or not name.startswith("dose"):
            write_table(table, out / file, index=table.index.name is not None)
    stages = {stage: METHOD_NAMES[stage] for stage in run.stages()}
    write_evaluation_page(out / REPORT, evaluation, run, stages)


def write_predictions(evaluation, layout, folder):
    """Write features, measures, maps and images of each stage for other tools into a folder."""
    measured = evaluation.measures[next(iter(evaluation.references))].add_prefix("measured_")
    for stage, prediction in evaluation.predictions.items():
        method = METHOD_NAMES[stage]
        coordinates = evaluation.maps.get(method)
        options = {
            "measures": evaluation.measures[method].join(measured),
            "maps": {} if coordinates is None else {"X_umap": coordinates},
        }
        files = writers(stage, layout, evaluation.cells.pixel_size_um, **options)
        for name, write in files.items():
            write(folder / name, prediction)
