"""Biophysical measures of the measured phase: nothing is trained, but a phase microscope is needed.

The same measures of a generator's images need no phase microscope.
"""

import numpy as np

from cytomad_lib.evaluation.biophysics import measure_cells

NAME = "measures of the measured phase"
NEEDS = "phase microscope"
TRAINS_ON = ()


def fit(features, images, labels, seed):
    """Fit nothing."""


def transform(fitted, features, images, labels):
    """Measure each cell; where a measure does not exist (no outline is found), it is 0."""
    measures = measure_cells(
        images.qpi,
        images.pixel_size_um,
        wavelength_um=images.wavelength_um,
        refraction_increment=images.refraction_increment,
    )
    return np.nan_to_num(measures.to_numpy(dtype=float))
