"""What the features are trained to predict: the cell's biophysics, without its batch.

A measured phase image carries its batch, and so do area, dry mass and texture that are measured on
it. Inside one class, the cells of all batches should be distributed alike. So the measures of each
group (batch and class) get the mean and the spread that their class has over all batches. What is
left tells cells of a class apart, and classes, but not batches.

Wrong labels make groups of their own: a few cells that seem to be of a class that was not measured
on that day. Such stray groups are not aligned, as that would make the classes alike.

Source: location and scale per batch, the class being kept, are the model of ComBat (Johnson et al.
2007, Biostatistics), here without its empirical Bayes.

Example
-------
>>> targets = measure_targets(cells)                     # CellImages or CellFiles
>>> targets.shape                                        # (cells, measures)
(756, 18)
"""

import numpy as np
import pandas as pd

from cytomad_lib.config import OUTLIERS, SMALL_GROUP, STRAY_GROUP
from cytomad_lib.evaluation.biophysics import measure_cells


def measure_targets(cells):
    """Measure the phase images of cells and remove the batch from the measures.

    Parameters
    ----------
    cells : CellImages or CellFiles
        With measured phase (or another target); read in slices.

    Returns
    -------
    float32 array (cells, measures)
        Standardised: mean 0 and variance 1 over the cells. Measures that are equal in all cells are
        left out.
    """
    tables = [
        measure_cells(part.qpi, part.pixel_size_um, wavelength_um=part.wavelength_um)
        for part in cells.in_slices(100)
    ]
    measures = pd.concat(tables).to_numpy(float)
    return without_batch(measures, cells.batch_codes, cells.class_codes)


def without_batch(measures, batch_codes, class_codes):
    """Give the measures of each group the mean and the spread of their class.

    Parameters
    ----------
    measures : array (cells, measures)
        NaN where a cell could not be measured; it gets the mean.
    batch_codes, class_codes : int array (cells,)

    Returns
    -------
    float32 array (cells, measures)
        As `measure_targets`.
    """
    low, high = np.nanpercentile(measures, [100 * OUTLIERS, 100 * (1 - OUTLIERS)], axis=0)
    measures = np.clip(measures, low, high)
    measures = np.where(np.isnan(measures), np.nanmean(measures, axis=0), measures)
    measures = _standardised(measures)
    groups = [batch_codes, class_codes]
    table = pd.DataFrame(measures)
    centred = table - table.groupby(groups).transform("mean")
    of_group = centred.groupby(groups).transform("std", ddof=0)
    of_class = centred.groupby(class_codes).transform("std", ddof=0)
    # The spread of very few cells is no estimate.
    few = table.groupby(groups)[0].transform("size") < SMALL_GROUP
    residuals = centred * (of_class / (of_group + 1e-6)).mask(few, 1.0)
    of_batch, of_its_class = _effects(measures, batch_codes, class_codes)
    stray = in_stray_group(batch_codes, class_codes)[:, None]
    targets = np.where(stray, measures - of_batch, of_its_class + residuals)
    return _standardised(targets).astype("float32")


def in_stray_group(batch_codes, class_codes):
    """Find the cells of groups that are very small beside others of their batch and their class.

    Parameters
    ----------
    batch_codes, class_codes : int array (cells,)

    Returns
    -------
    bool array (cells,)
        True where the group has less than `STRAY_GROUP` times the cells of the largest group of
        its class, and of the largest group of its batch.
    """
    sizes = np.zeros((batch_codes.max() + 1, class_codes.max() + 1))
    np.add.at(sizes, (batch_codes, class_codes), 1)
    largest = np.minimum(sizes.max(axis=0), sizes.max(axis=1, keepdims=True))
    return (sizes < STRAY_GROUP * largest)[batch_codes, class_codes]


def _effects(measures, batch_codes, class_codes):
    """Return the effects of each cell's batch and of its class, by least squares."""
    batch, class_name = (np.eye(codes.max() + 1)[codes] for codes in (batch_codes, class_codes))
    effects = np.linalg.lstsq(np.hstack([batch, class_name]), measures, rcond=None)[0]
    return batch @ effects[: batch.shape[1]], class_name @ effects[batch.shape[1] :]


def _standardised(values):
    spread = values.std(axis=0)
    varies = spread > 1e-6 * np.abs(values).max(axis=0, initial=1e-12)
    return (values[:, varies] - values[:, varies].mean(axis=0)) / spread[varies]
