"""All methods in one table, the best first: ranked by the worst of three requirements.

Features must not show the batch. They must show the class of cells in a batch that the probe was
not trained on. And they must keep the differences between the cells of a class. Features that fail
one of the three are of no use, and a mean would hide that. So the rank is by the worst of

- *batch removed*: (1 - accuracy of the batch within class) / (1 - chance): 1 at chance, 0 where the
  batch is always read;
- *class*: (accuracy on an unseen batch - chance) / (that of the truth's measures - chance);
- *biology*: R² of the truth's measures within class; that of the truth's measures themselves is 1.

Each is cut at 0 and 1. Without a truth, the ceiling of the class is 1.
"""

import pandas as pd

from cytomad_lib.evaluation.biology import BIOLOGY, KEPT, UNSEEN_BIOLOGY
from cytomad_lib.evaluation.image_tables import TRUTH
from cytomad_lib.evaluation.probes import MEASURES
from cytomad_lib.evaluation.tables import as_text

BATCH, _, UNSEEN = MEASURES
RANKED = (*MEASURES, *KEPT)  # the measures of a ranking
WORST, WEAKEST = "worst of three", "weakest"
SHORT = {  # columns for the terminal
    WORST: "worst",
    WEAKEST: "which",
    BATCH: "batch",
    UNSEEN: "class, unseen",
    BIOLOGY: "biology",
    UNSEEN_BIOLOGY: "biology, unseen",
    "effective dimensions": "dimensions",
    "null_control": "null control",
    "needs": "needs",
}


def rank_methods(table, notes=None):
    """Put methods in order by the worst of batch, class and biology.

    Parameters
    ----------
    table : pandas.DataFrame
        Tidy: `method`, `measure` (of `RANKED`), `value` and `chance`. Several rows (seeds) of a
        method and measure are averaged.
    notes : pandas.DataFrame, optional
        By method; its columns are put beside.

    Returns
    -------
    pandas.DataFrame
        By method: `WORST` (NaN, and last, where one of the three is not known), `WEAKEST` (which of
        the three that is), all measures, and the notes. The order is by `WORST`.
    """
    values = table.pivot_table(index="method", columns="measure", values="value", sort=False)
    values = values.reindex(columns=list(dict.fromkeys([*MEASURES, BIOLOGY, *values.columns])))
    chance = table.groupby("measure")["chance"].mean().reindex(values.columns)
    best = values[UNSEEN].get(TRUTH, 1.0)
    scaled = pd.DataFrame(
        {
            "batch removed": (1 - values[BATCH]) / (1 - chance[BATCH]),
            "class": (values[UNSEEN] - chance[UNSEEN]) / (best - chance[UNSEEN]),
            "biology": values[BIOLOGY],
        }
    ).clip(0, 1)
    known = scaled.notna().all(axis=1)
    values.insert(0, WORST, scaled.min(axis=1).where(known))
    values.insert(1, WEAKEST, scaled[known].idxmin(axis=1))
    values = values if notes is None else values.join(notes)
    return values.sort_values(WORST, ascending=False, kind="stable").rename_axis(columns=None)


def ranking_text(ranking):
    """Return a ranking as text for the terminal, with the columns that decide."""
    table = ranking.reindex(columns=SHORT).dropna(axis="columns", how="all").rename(columns=SHORT)
    return (
        "All methods, ranked by the worst of batch removed, class on an unseen batch and biology, "
        "each from 0 to 1\n"
        "(batch within class: low is good; biology: R² of the cell's biophysics inside the "
        "classes;\noracle: it uses the class of the cells)\n"
        + as_text(table.fillna({"which": "-"}))
    )
