"""The content of the HTML pages of an evaluation and of a comparison.

The words are in `pages.toml`, the layout is in `plots/report.html`.

- `write_evaluation_page`: one run on one split.
- `write_comparison_page`: several seeds of the same training.
"""

import tomllib
from pathlib import Path

import pandas as pd

from cytomad_lib.evaluation.results import baseline_remarks
from cytomad_lib.evaluation.tables import format_scores
from cytomad_lib.plots.report import Section, write_report

WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def write_evaluation_page(path, evaluation, run, stages):
    """Write the page of one run on one split.

    Parameters
    ----------
    path : path
        Ends in `.html`.
    evaluation : Evaluation
    run : Run
    stages : dict
        Trained stage to its name in the tables.

    Returns
    -------
    pathlib.Path
    """
    scores = evaluation.main_scores
    tables = {
        "scores": format_scores(scores) if len(scores) else None,
        "images": evaluation.images,
        "not_scored": evaluation.not_scored,
        "doses": evaluation.dose_table(),
        "ranking": evaluation.ranking,
        "cell_measures": evaluation.cell_measures,
        "mixing": evaluation.mixing.set_index("method"),
    }
    dry_mass = evaluation.dry_mass
    words = {
        "verdict": evaluation.verdict(),
        "remarks": "\n\n".join(baseline_remarks(evaluation.baselines)),
        "dry_mass": f" Dry mass: {dry_mass}." if dry_mass else "",
    }
    origin = dataset_text(evaluation.dataset, evaluation.simulated)
    facts = run_facts(run, stages) | {
        "Dataset": origin,
        "Evaluated on": f"{len(evaluation.cells)} cells of the {evaluation.split} split",
        "Seed of the probes": evaluation.seed,
        **({"Dry mass": dry_mass} if dry_mass else {}),
    }
    return write_report(
        path,
        "CytoMAD: evaluation of a run",
        f"{origin}, {evaluation.split} split",
        facts,
        _sections("evaluation", tables, evaluation.figures, words),
    )


def write_comparison_page(comparison, dataset, runs, figures):
    """Write the page of a comparison over seeds.

    Parameters
    ----------
    comparison : Comparison
    dataset : str
        See `dataset_text`.
    runs : dict
        Seed to its run.
    figures : list of Path
        `cells.png` of the first seed and, where they exist, `scores.png` and `baselines.png`.

    Returns
    -------
    pathlib.Path
    """
    tables = {"methods": comparison.methods_table(), "ranking": comparison.ranking()}
    words = {"remarks": "\n\n".join(comparison.remarks)}
    facts = {"Dataset": f"{dataset}, Test split", "Seeds": ", ".join(map(str, runs))}
    facts |= run_facts(next(iter(runs.values())), {})
    del facts["Seed of the training"], facts["Training time"]
    return write_report(
        comparison.page,
        "CytoMAD: comparison of recipes",
        f"{dataset}: {len(runs)} seeds, Test split",
        facts,
        _sections("comparison", tables, figures, words),
    )


def _sections(page, tables, figures, words):
    words = WORDS["notes"] | words
    sections = []
    for part in WORDS[page]:
        table = tables.get(part.get("table"))
        if part.get("optional") and not len(table):
            continue
        shown = [
            (path, WORDS["captions"][kind])
            for kind in part.get("figures", [])
            for path in figures
            if path.stem.split("_")[0] == kind
        ]
        text, note = (part.get(name, "").format(**words) for name in ("text", "note"))
        caption = part.get("table_caption", "")
        sections.append(Section(part["title"], text, table, shown, caption, note))
    return sections


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


def duration(seconds):
    """Return seconds as text that can be compared: minutes, one decimal.

    >>> duration(90)
    '1.5 min'
    """
    return "not kept" if pd.isna(seconds) else f"{seconds / 60:.1f} min"


def dataset_text(name, simulated):
    """Return the name of a dataset, marked if its cells are simulated."""
    return name + (" (SIMULATED cells)" if simulated else "")
