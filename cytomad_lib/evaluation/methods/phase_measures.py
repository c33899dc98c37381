"""Biophysical measures of the measured phase: nothing is trained, but a phase microscope is needed.

The same measures of a generator's images need no phase microscope.
"""

import numpy as np

from cytomad_lib.evaluation.biophysics import measure_images

NAME = "measures of the measured phase"
NEEDS = "phase microscope"


def transform(seed, features, images, labels):
    """Measure each cell."""
    return as_features(measure_images(images.qpi, images))


def as_features(measures):
    """Return measures as float32 features; one that does not exist (no outline is found) is 0."""
    return np.nan_to_num(measures.to_numpy(dtype=float)).astype(np.float32)
