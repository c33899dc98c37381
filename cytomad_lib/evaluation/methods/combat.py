"""ComBat: standardisation whose means and spreads borrow strength from all features."""

from cytomad_lib.evaluation.combat import combat
from cytomad_lib.evaluation.components import keep_seed, noisy_components

NAME = "ComBat"
NEEDS = "many cells of the batch"
TRAINS_ON = ()

fit = keep_seed


def transform(fitted, features, images, labels):
    """Correct the components of the cells."""
    components = noisy_components(features, fitted)
    return combat(components, labels.assign(class_name="any"))
