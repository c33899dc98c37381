"""The scores of one run on one split, as tables and as text.

- `Evaluation`: all tables, what could not be scored, and a summary.
- `baseline_remarks`: which baselines are missing, and which write a batch in.

Example
-------
>>> evaluation = evaluate(run, "Dataset/7LungCancerDataset", "Test", "results/run")
>>> print(evaluation.summary())
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.folders import listed
from cytomad_lib.evaluation.classifiers import PROBES
from cytomad_lib.evaluation.image_probe import MEASURE as IMAGE_MEASURE
from cytomad_lib.evaluation.image_tables import TRUTH
from cytomad_lib.evaluation.probes import MEASURES
from cytomad_lib.evaluation.ranking import rank_methods, ranking_text
from cytomad_lib.evaluation.tables import as_text, format_scores, pivot_in_order

METHOD_NAMES = {
    "pretraining": "pretrained",
    "published": "published recipe",
    "conditional": "conditional recipe",
}
ORDER = (MEASURES[0], IMAGE_MEASURE, *MEASURES[1:])  # of the measures in a table
BASELINE = "baseline"  # in the column `kind`, beside "stage" and "reference"
# Field of `Evaluation` to the file that holds it.
FILES = {
    "scores": "scores.csv",
    "images": "image_scores.csv",
    "cell_measures": "cell_measures.csv",
    "biology": "biology.csv",
    "ranking": "ranking.csv",
    "mixing": "mixing.csv",
    "baselines": "baselines.csv",
    "not_scored": "not_scored.csv",
    "dose_order": "dose_order.csv",
    "dose_distance": "dose_distance.csv",
}


@dataclass(eq=False)
class Evaluation:
    """Scores of a run on one split, and where its figures are.

    Attributes
    ----------
    split : str
    seed : int
        Of the probes.
    dataset : str
        Name of the dataset's folder.
    simulated : bool
        Whether its cells are simulated.
    cells : CellImages
        The cells of the split.
    predictions : dict of Prediction
        By trained stage.
    references : dict of array
        Images that the predictions are compared with, by name.
    measures : dict of DataFrame
        `biophysics.measure_images` of the images of each stage and reference, by method.
    results : dict of list of ProbeResult
        By method.
    scores : DataFrame
        One row per method and measure; see `probes.results_table`. Column `kind` tells stages,
        references and baselines apart.
    images : DataFrame
        One row per method: image quality against the measured phase and, if known, the truth.
    cell_measures : DataFrame
        One row per method, reference and measure of the cell; see `cell_measure_errors`.
    mixing : DataFrame
        See `mixing.mixing_table`.
    biology : DataFrame
        Columns `method`, `measure`, `value` and `chance`; see `biology.score_biology`. Empty if the
        target is no phase.
    baselines : DataFrame
        Columns `baseline`, `available`, `needs`, `trained_on`, `null_control` (accuracy of a probe
        in telling random halves apart, chance 0.5; NaN for methods that use no batch),
        `null_control_95` (what shuffled halves reach) and `note`.
    dose_order, dose_distance : DataFrame
        See `dose_response.dose_order` and `dose_distances`, with a column `method`; empty for a
        dataset without doses.
    left_out : list of (str, str, str)
        Measure, what is left out of it, and why.
    dry_mass : str
        Wavelength and refraction increment that dry mass was computed with; empty if it was not.
    classifier_scores : Series or None
        Share of cells that the published recipe's own classifiers call "first batch".
    figures : list of Path
    maps : dict of array (cells, 2)
        The map of each stage's features that was drawn, by method.
    """

    split: str
    seed: int
    dataset: str
    simulated: bool
    cells: CellImages
    predictions: dict
    references: dict
    measures: dict
    results: dict
    scores: pd.DataFrame
    images: pd.DataFrame
    cell_measures: pd.DataFrame
    biology: pd.DataFrame
    mixing: pd.DataFrame
    baselines: pd.DataFrame
    dose_order: pd.DataFrame
    dose_distance: pd.DataFrame
    left_out: list
    dry_mass: str = ""
    classifier_scores: pd.Series | None = None
    figures: list = field(default_factory=list)
    maps: dict = field(default_factory=dict)

    @property
    def features(self):
        """Bottleneck features of each stage, by method."""
        return {METHOD_NAMES[stage]: p.features for stage, p in self.predictions.items()}

    @property
    def stage_images(self):
        """Predicted images of each stage, by method."""
        return {METHOD_NAMES[stage]: p.images for stage, p in self.predictions.items()}

    @property
    def first_batch(self):
        """Share of cells that are of the first batch."""
        return float(np.mean(self.cells.batch_codes == 0))

    @property
    def main_scores(self):
        """The scores without those of the baselines."""
        return self.scores[self.scores["kind"] != BASELINE]

    @property
    def not_scored(self):
        """What could not be scored: DataFrame with columns `measure`, `left_out` and `why`."""
        return pd.DataFrame(self.left_out, columns=["measure", "left_out", "why"])

    @property
    def ranking(self):
        """All methods, the best first; see `ranking.rank_methods`."""
        table = pd.concat([self.scores.rename(columns={"accuracy": "value"}), self.biology])
        notes = self.baselines.set_index("baseline")[["needs", "null_control", "null_control_95"]]
        ranking = rank_methods(table[table["measure"] != IMAGE_MEASURE], notes)
        without = {name: "phase microscope" for name in self.references} | {TRUTH: "simulation"}
        needs = ranking.index.to_series().map(without).fillna("nothing")
        return ranking.assign(needs=ranking["needs"].fillna(needs))

    def dose_table(self):
        """Return Spearman's rho between dose and position: methods in rows, drugs in columns."""
        if not len(self.dose_order):
            return pd.DataFrame()
        rows = self.dose_order[self.dose_order["batch"] == "all"]
        table = pivot_in_order(rows, "method", "class_name", "rho_groups")
        table["null 95 %"] = rows.groupby("method")["null_95_groups"].max()
        return table

    def not_scored_lines(self):
        """Return a line for each reason why something was not scored."""
        lines = []
        for why, rows in self.not_scored.groupby("why", sort=False):
            measures, names = rows["measure"].unique(), rows["left_out"].unique()
            lines.append(f"{'; '.join(measures)} – {listed(names, most=4)}: {why}")
        return lines

    def verdict(self):
        """Return what the published recipe's own classifiers say, and what to make of it."""
        if self.classifier_scores is None:
            return ""
        least, most = 100 * self.classifier_scores.min(), 100 * self.classifier_scores.max()
        return (
            f"The published recipe's own batch classifiers call {least:.1f} to {most:.1f} % of "
            f"these cells 'first batch' ({100 * self.first_batch:.1f} % are).\n"
            "This shows how far they are fooled. Whether the batch is gone, the probes show."
        )

    def summary(self):
        """Return the scores as text: measures in rows, methods in columns, chance beside them."""
        n_cells = len(self.cells)
        parts = [
            f"Accuracy of independent probes on {n_cells} cells of the {self.split} split "
            f"(strongest of {', '.join(PROBES)}; probe seed {self.seed})\n"
            "Batch should be at chance, class high.\n" + as_text(format_scores(self.main_scores))
            if len(self.main_scores)
            else f"No probe can score the {n_cells} cells of the {self.split} split.",
            "Images (mean over cells)\n" + as_text(self.images),
            self.verdict(),
        ]
        if len(self.dose_order):
            parts.append(
                "Order of the doses within each drug (Spearman's rho of the group means). No "
                "training and no probe used the dose.\n" + as_text(self.dose_table())
            )
        if len(self.ranking):
            parts.append(ranking_text(self.ranking))
        parts.append("\n".join(baseline_remarks(self.baselines)))
        if len(self.left_out):
            parts.append("Not scored\n" + "\n".join(self.not_scored_lines()))
        return "\n\n".join(part for part in parts if part)


def baseline_remarks(baselines):
    """Return a sentence for each baseline that is missing, or that writes a batch in.

    Parameters
    ----------
    baselines : DataFrame
        As `Evaluation.baselines`.

    Returns
    -------
    list of str
    """
    remarks = []
    for row in baselines.itertuples():
        if not row.available:
            remarks.append(f"{row.baseline} is missing: {row.note}")
        elif row.null_control > row.null_control_95:
            remarks.append(
                f"{row.baseline} writes a batch in where there is none: after it, a probe tells "
                f"random halves of the same cells apart at {row.null_control:.2f} (chance 0.50, "
                f"95 % of shuffles below {row.null_control_95:.2f}). Do not rely on its batch "
                "score."
            )
    return remarks


def if_possible(left_out, measure, compute, otherwise):
    """Return what `compute` returns; if these cells do not allow it, note why in `left_out`."""
    try:
        return compute()
    except CytomadError as error:
        left_out.append((measure, "all", str(error)))
        return otherwise
