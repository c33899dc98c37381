"""What was measured, as rows of a table, as text and as files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.bench.work import OURS, PUBLISHED_WAY
from cytomad_lib.data.files import write_table, write_text

TABLE, DETAILS = "bench.csv", "bench.json"


@dataclass
class Measurement:
    """What was measured of one piece of work.

    Parameters
    ----------
    preset, work, unit : str
    per_second : bool
    operations : int or None
        Per unit.
    first : dict of float
        By side: seconds of the first run, with all that is done once.
    seconds : dict of list of float
        By side: seconds per unit, measurement after measurement.
    rates : list of float
        Operations per second of the matrix product, before each measurement.
    memory : dict of int or None
        By side: bytes.
    """

    preset: str
    work: str
    unit: str
    per_second: bool
    operations: int | None
    first: dict
    seconds: dict
    rates: list
    memory: dict = field(default_factory=dict)

    def row(self):
        """Return the row of the table: medians and quartiles."""
        row = {
            "preset": self.preset,
            "work": self.work,
            "unit": f"{self.unit}s/s" if self.per_second else f"s/{self.unit}",
            "repeats": len(self.rates),
            "gflop": None if self.operations is None else self.operations / 1e9,
        }
        for side, prefix in ((OURS, ""), (PUBLISHED_WAY, "published_")):
            seconds = np.array(self.seconds.get(side, []))
            row |= _quartiles(side, 1 / seconds if self.per_second else seconds)
            row[f"{prefix}first_run_s"] = self.first.get(side)
            memory = self.memory.get(side)
            row[f"{prefix}memory_mb"] = None if memory is None else memory / 1e6
            share = None
            if self.operations is not None and len(seconds):
                share = float(np.median(self.operations / seconds / np.array(self.rates)))
            row[f"{prefix}share"] = share
        return row | _quartiles("ratio", self.ratios())

    def ratios(self):
        """Return how many times faster ours was, for each pair of neighbouring measurements."""
        if PUBLISHED_WAY not in self.seconds:
            return np.array([])
        return np.array(self.seconds[PUBLISHED_WAY]) / np.array(self.seconds[OURS])


def _quartiles(name, values):
    q1, median, q3 = np.percentile(values, [25, 50, 75]) if len(values) else [None] * 3
    return {name: median, f"{name}_q1": q1, f"{name}_q3": q3}


@dataclass
class BenchResult:
    """The table, and what it was measured on.

    Parameters
    ----------
    measurements : list of Measurement
    facts : dict
        From `machine_facts`.
    notes : list of str
        What a reader has to know.
    """

    measurements: list
    facts: dict
    notes: list

    @property
    def table(self):
        """One row per preset and work; see `Measurement.row`."""
        return pd.DataFrame([measurement.row() for measurement in self.measurements])

    @property
    def product_rate(self):
        """Median rate of the matrix product over the whole run, operations per second."""
        return float(np.median([rate for found in self.measurements for rate in found.rates]))

    def summary(self):
        """Return the table as text, in Markdown."""
        hardware, versions = self.facts["hardware"], self.facts["versions"]
        backend = versions["backend"]
        facts = [
            f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB",
            f"GPU: {hardware['gpu'] or 'none'}",
            f"Keras {versions['keras']} on {backend} {versions[backend]}",
            f"matrix product {self.product_rate / 1e9:.0f} GFLOP/s",
        ]
        columns = {
            "work": [f"{found.preset}: {found.work}" for found in self.measurements],
            **_columns(self.table),
        }
        lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
        table = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join(["; ".join(facts), "", *table, "", *self.notes])

    def write(self, folder):
        """Write the table as CSV, and all measurements with versions and hardware as JSON.

        Returns
        -------
        list of Path
        """
        paths = [Path(folder) / TABLE, Path(folder) / DETAILS]
        write_table(self.table, paths[0], index=False)
        details = self.facts | {
            "matrix_product_gflops": self.product_rate / 1e9,
            "notes": self.notes,
            "measurements": [asdict(found) for found in self.measurements],
        }
        write_text(paths[1], json.dumps(details, indent=2) + "\n")
        return paths


def _columns(table):
    def with_spread(name, digits=3):
        return [
            "–" if pd.isna(middle) else f"{middle:.{digits}g} ({low:.{digits}g}–{high:.{digits}g})"
            for middle, low, high in table[[name, f"{name}_q1", f"{name}_q3"]].to_numpy()
        ]

    def as_text(name, form):
        return ["–" if pd.isna(value) else form.format(value) for value in table[name]]

    shown = {"unit": list(table["unit"]), OURS: with_spread("ours")}
    published = bool(table["published"].notna().any())
    if published:
        shown |= {"published way": with_spread("published"), "ratio": with_spread("ratio")}
    shown["first run, s"] = as_text("first_run_s", "{:.1f}")
    shown["peak MB"] = as_text("memory_mb", "{:.0f}")
    if published:
        shown["peak MB, published way"] = as_text("published_memory_mb", "{:.0f}")
    shown |= {"GFLOP": as_text("gflop", "{:.3g}"), "of matrix product": as_text("share", "{:.0%}")}
    return shown
