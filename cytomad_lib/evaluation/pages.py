"""The content of the HTML pages of an evaluation and of a comparison; `plots.report` lays it out.

- `write_evaluation_page`: one run on one split.
- `write_comparison_page`: several seeds of the same training.
"""

import pandas as pd

from cytomad_lib.evaluation.results import baseline_remarks
from cytomad_lib.evaluation.tables import format_scores
from cytomad_lib.plots import report
from cytomad_lib.plots.report import Section

CAPTIONS = {
    "losses": "Losses by epoch. Training and validation should fall together; where validation "
    "rises again, the training cells are being learned by heart.",
    "cells": "The same cells under every method, one phase scale for all; the last column is the "
    "last method minus the reference. Look for texture that the reference does not have: it lowers "
    "batch scores without any batch being removed.",
    "scores": "Accuracy of the strongest probe. Dashed: chance. Grey box: what shuffled labels "
    "reach; a bar that ends inside it knows nothing. Batch should end there, class far above.",
    "baselines": "Baselines beside the trained stages. Pale bars are "
    "oracles: they use the class of the cells they correct, so their class accuracy means nothing.",
    "umap": "A map of the cells by their features, coloured by batch and by class. Islands of one "
    "colour on the left are batches; on the right, islands should be classes.",
    "confusion": "What the strongest probe takes for what, in percent of the true label. A "
    "diagonal in the first matrix is batch that can be read.",
    "doses": "Distance of each dose from the untreated cells of the same batch, in units of their "
    "spread. Dotted: what two samples of untreated cells differ by.",
    "encoding": "Which property of the cell each feature follows, as a correlation over the cells.",
}
READING = """\
Batch within class: a probe tells apart the batches of one class; it should be at chance. \
Class, unseen batch: a probe that never saw a batch tells the classes apart there; this is what \
removal is for. All probes were trained after the generator, by cross-validation inside this split.

The null is the same procedure on shuffled labels: an accuracy at or below it shows nothing."""
IMAGE_NOTE = """\
Against the measured phase, keeping the batch effect raises the scores; against the batch-free \
truth it lowers them. Structure r compares the fine structure inside the cell only: texture that \
was invented cannot hide there."""
RANKING = """\
Ranked by the worst of three, each from 0 to 1: batch removed (chance is 1), class on an unseen \
batch (the measures of the truth are 1), and biology within class (R² of the truth's biophysical \
measures, or where there is no truth, of measured ones that are standardised in each batch and \
class). Biology and class count because features can pass the batch scores and keep nothing else.

"needs" is what a cell must come with: nothing but its brightfield image; its batch; many cells of \
its batch at once; its class; or a phase microscope."""
RANKING_NOTE = """\
Baselines use the pretrained features, whose active units they turn into whitened components, or \
the brightfield image. Oracles use the class of the cells and are no competitors. Batch accuracy \
below chance is an artefact of making means equal over training and test folds together; read it \
as "nothing linear left"."""
CONTROL_NOTE = """\
Null control: the cells of each group are split in two halves at random, and the halves are taken \
for batches. A probe should not tell them apart (chance 0.5; 95 % of shuffles below \
null_control_95). Where it does, the correction itself writes a batch in."""
MIXING_NOTE = """\
0: batches apart, 1: mixed. The last row, with the batches shuffled, shows how much so few cells \
can reach. Features that say nothing are perfectly mixed: read this beside the class accuracy."""


def write_evaluation_page(path, evaluation, run, stages):
    """Write the page of one run on one split.

    Parameters
    ----------
    path : path
        Ends in `.html`.
    evaluation : Evaluation
    run : Run
    stages : dict
        Trained stage to the name that it goes by.

    Returns
    -------
    pathlib.Path
    """
    scores = Section(
        "Is the batch gone, and is the class still there?",
        READING,
        format_scores(evaluation.main_scores) if len(evaluation.main_scores) else None,
        _figures(evaluation, "scores"),
        "Accuracy of the strongest probe",
        evaluation.verdict(),
    )
    images = Section(
        "Are the images right?",
        table=evaluation.images,
        figures=_figures(evaluation, "cells"),
        table_caption="Image quality, mean over cells",
        note=IMAGE_NOTE,
    )
    mass = f" Dry mass: {evaluation.dry_mass}." if evaluation.dry_mass else ""
    cells = Section(
        "Would a biologist measure the same?",
        "What is measured on each cell's image, inside its own outline. The mean error is that of "
        f"the method minus the reference.{mass}",
        evaluation.cell_measures,
        table_caption="Errors of what is measured on a cell",
    )
    mixing = Section(
        "Are the batches mixed?",
        "kBET, iLISI and BRAS inside each class, averaged over the classes.",
        evaluation.mixing.set_index("method"),
        table_caption="Mixing of the batches",
        note=MIXING_NOTE,
    )
    more = Section("A closer look", figures=_figures(evaluation, "umap", "confusion", "encoding"))
    losses = Section("How the training went", figures=_figures(evaluation, "losses"))
    remarks, bars = baseline_remarks(evaluation.baselines), _figures(evaluation, "baselines")
    ranked = evaluation.ranking, remarks, bars
    special = [*_dose_section(evaluation), *_ranking_section(*ranked)]
    sections = [scores, images, *_not_scored_section(evaluation), *special]
    sections += [cells, mixing, more, losses]
    return report.write_report(
        path,
        "CytoMAD: evaluation of a run",
        f"{_origin(evaluation)}, {evaluation.split} split",
        run_facts(run, stages) | split_facts(evaluation),
        sections,
    )


def write_comparison_page(path, subtitle, facts, table, ranking, notes, figures):
    """Write the page of a comparison over seeds.

    Parameters
    ----------
    path : path
        Ends in `.html`.
    subtitle : str
    facts : dict
        See `report.write_report`.
    table, ranking : DataFrame
        Measures in rows and methods in columns; see `ranking.rank_methods`.
    notes : list of str
        What is missing, and why.
    figures : dict
        `cells`: the image grid of the first seed; if there are any, `scores` and `baselines`.

    Returns
    -------
    pathlib.Path
    """
    sections = [
        Section(
            "Is the batch gone, and is the class still there?",
            READING,
            table,
            [(figures["scores"], CAPTIONS["scores"])] if "scores" in figures else [],
            "Mean ± standard deviation over the seeds",
            IMAGE_NOTE + "\n\nTraining times are those of each stage alone; both recipes begin "
            "with the pretrained generator.",
        ),
        Section(
            "The same cells under every method",
            "First seed.",
            figures=[(figures["cells"], CAPTIONS["cells"])],
        ),
    ]
    bars = [(figures["baselines"], CAPTIONS["baselines"])] if "baselines" in figures else []
    sections += _ranking_section(ranking, notes, bars)
    return report.write_report(path, "CytoMAD: comparison of recipes", subtitle, facts, sections)


def run_facts(run, stages):
    """Return what was trained, for the head of a page."""
    per_group = pd.Series(run.settings["training_cells"])
    low, high = per_group.min(), per_group.max()
    spread = f"{low}" if low == high else f"{low} to {high}"
    return {
        "Preset": f"{run.preset.name} ({run.preset.image_size} x {run.preset.image_size} pixels, "
        f"{run.preset.base_filters} base filters)",
        "Seed of the training": run.seed,
        "Training cells": f"{per_group.sum()} in {len(per_group)} groups ({spread} per group)",
        "Training time": {
            name: duration(run.training_seconds(stage)) for stage, name in stages.items()
        },
        "Versions": run.settings["versions"],
    }


def split_facts(evaluation):
    """Return what was evaluated, for the head of a page."""
    return {
        "Dataset": _origin(evaluation),
        "Evaluated on": f"{len(evaluation.cells)} cells of the {evaluation.split} split",
        "Seed of the probes": evaluation.seed,
        **({"Dry mass": evaluation.dry_mass} if evaluation.dry_mass else {}),
    }


def duration(seconds):
    """Return seconds as text that can be compared: minutes, one decimal.

    >>> duration(90)
    '1.5 min'
    """
    return "not kept" if pd.isna(seconds) else f"{seconds / 60:.1f} min"


def _origin(evaluation):
    return evaluation.dataset + (" (SIMULATED cells)" if evaluation.simulated else "")


def _figures(evaluation, *kinds):
    """Return (path, caption) of the figures whose name begins with one of the kinds."""
    return [
        (path, CAPTIONS[kind])
        for kind in kinds
        for path in evaluation.figures
        if path.stem.split("_")[0] == kind
    ]


def _dose_section(evaluation):
    if not len(evaluation.dose_order):
        return []
    return [
        Section(
            "Are the doses in order?",
            "No training and no probe was shown a dose. The cells are placed on the axis from "
            "untreated cells to those of the drug, all doses together, found on other cells.",
            evaluation.dose_table(),
            _figures(evaluation, "doses"),
            "Spearman's rho between dose and position, of the means of dose and batch",
        )
    ]


def _not_scored_section(evaluation):
    if not len(evaluation.not_scored):
        return []
    text = "What these cells do not allow to ask. Chance and null are those of the cells scored."
    return [Section("What was not scored, and why", text, evaluation.not_scored)]


def _ranking_section(ranking, notes, figures):
    if not len(ranking):
        return []
    note = "\n\n".join(filter(None, [RANKING_NOTE, CONTROL_NOTE, *notes]))
    text, caption = RANKING, "All methods, ranked by the worst of three"
    return [Section("What is kept, and by which method?", text, ranking, figures, caption, note)]
