"""ComBat with class effects in its model, so that they are kept."""

from cytomad_lib.evaluation.combat import combat
from cytomad_lib.evaluation.components import keep_seed, noisy_components

NAME = "ComBat with class"
NEEDS = "class"
TRAINS_ON = ()

fit = keep_seed


def transform(fitted, features, images, labels):
    """Correct the components of the cells."""
    components = noisy_components(features, fitted)
    return combat(components, labels, with_class=True)
