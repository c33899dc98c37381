"""ComBat: standardisation whose means and spreads borrow strength from all features."""

from cytomad_lib.evaluation.combat import combat
from cytomad_lib.evaluation.components import active_components, with_noise

NAME = "ComBat"
NEEDS = "many cells of the batch"
TRAINS_ON = ()


def fit(features, images, labels, seed):
    """Keep the seed of the noise."""
    return seed


def transform(fitted, features, images, labels):
    """Correct the components of the cells."""
    components = with_noise(active_components(features)(features), fitted)
    return combat(components, labels.assign(class_name="any"))
