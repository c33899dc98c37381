"""ComBat with class effects in its model, so that they are kept."""

from cytomad_lib.evaluation.combat import combat
from cytomad_lib.evaluation.components import noisy_components

NAME = "ComBat with class"
NEEDS = "class"


def transform(seed, features, images, labels):
    """Correct the components of the cells."""
    components = noisy_components(features, seed)
    return combat(components, labels, with_class=True)
