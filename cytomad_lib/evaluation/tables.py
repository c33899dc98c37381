"""Tables to read: scores side by side, mean and spread over seeds, text for the terminal.

- `format_scores`: the scores of probes, measures in rows and methods in columns.
- `seed_summary`: mean and standard deviation over seeds.
- `as_text`, `format_value`: a table, or one value of it, as text.

Example
-------
>>> format_value(2 / 3), format_value(None)
('0.667', '–')
"""

from numbers import Integral, Real

import numpy as np
import pandas as pd

MISSING = "–"


def format_scores(scores):
    """Put scores into one table to read: measures in rows, methods in columns.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `probes.results_table`, one row per method and measure. Where a method has several
        rows (seeds) for a measure, their mean is shown; `seed_summary` has the spread.

    Returns
    -------
    pandas.DataFrame
        Columns `chance`, `null 95 %` (the largest of the methods'), then the methods. Bits of
        batch information have a row of their own.
    """
    measures = list(dict.fromkeys(scores["measure"]))
    methods = list(dict.fromkeys(scores["method"]))
    by_method = scores.groupby(["measure", "method"], observed=True)
    by_measure = scores.groupby("measure", observed=True)
    table = by_method["accuracy"].mean().unstack().loc[measures, methods]
    table.insert(0, "chance", by_measure["chance"].first())
    table.insert(1, "null 95 %", by_measure["null_95"].max())
    for measure in measures:
        bits = by_method["bits"].mean()[measure].dropna()
        if len(bits):
            table.loc[f"{measure}, in bits"] = {"chance": 0.0} | bits.to_dict()
    return table.rename_axis(index="measure", columns=None)


def seed_summary(table, by, value):
    """Summarise repeated trainings: mean and standard deviation over seeds.

    Parameters
    ----------
    table : pandas.DataFrame
        Tidy, one row per seed and whatever `by` names.
    by : list of str
        Columns that tell apart what is not to be averaged, for instance method and measure. All
        rows that agree in them count as seeds of one thing.
    value : str
        Column of numbers; missing ones are left out.

    Returns
    -------
    pandas.DataFrame
        Columns of `by`, then `mean`, `s.d.` (with n - 1), `n`, and `mean ± s.d.` as text, which is
        the mean alone where there is one seed. In the order of first appearance.
    """
    groups = table.groupby(list(by), sort=False, observed=True, dropna=False)[value]
    summary = groups.agg(**{"mean": "mean", "s.d.": "std", "n": "count"}).reset_index()
    summary["mean ± s.d."] = [
        format_value(mean) if n < 2 else f"{format_value(mean)} ± {format_value(spread)}"
        for mean, spread, n in zip(summary["mean"], summary["s.d."], summary["n"], strict=True)
    ]
    return summary


def pivot_in_order(rows, index, columns, values):
    """Pivot a table; rows and columns keep their order of first appearance."""
    table = rows.pivot(index=index, columns=columns, values=values)
    return table.loc[rows[index].unique(), rows[columns].unique()].rename_axis(columns=None)


def as_text(table):
    """Return a table as text for the terminal: three decimals, a dash where nothing is."""
    table = table.rename_axis(index=None, columns=None)
    return table.to_string(float_format="{:.3f}".format, na_rep="-")


def format_value(value):
    """Return the text of a table's cell."""
    if is_missing(value):
        return MISSING
    if not is_number(value) or isinstance(value, Integral):
        return str(value).replace(" ± ", "\u00a0±\u00a0")  # a number and its spread on one line
    return f"{value:z.3f}"  # z: no minus sign before zero


def is_number(value):
    """Say whether a value is a number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool)


def is_missing(value):
    """Say whether a value is None, NaN or NA."""
    return pd.api.types.is_scalar(value) and pd.isna(value)
