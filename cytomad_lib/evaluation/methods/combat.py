"""ComBat: standardisation whose means and spreads borrow strength from all features."""

from cytomad_lib.evaluation.combat import combat
from cytomad_lib.evaluation.components import noisy_components

NAME = "ComBat"
NEEDS = "many cells of the batch"


def transform(seed, features, images, labels):
    """Correct the components of the cells."""
    components = noisy_components(features, seed)
    return combat(components, labels.assign(class_name="any"))
