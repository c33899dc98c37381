"""ComBat with class effects in its model, so that they are kept."""

from cytomad_lib.evaluation.combat import combat
from cytomad_lib.evaluation.components import active_components, with_noise
from cytomad_lib.evaluation.methods.combat import fit

NAME = "ComBat with class"
NEEDS = "class"
TRAINS_ON = ()

__all__ = ["fit", "transform"]


def transform(fitted, features, images, labels):
    """Correct the components of the cells."""
    components = with_noise(active_components(features)(features), fitted)
    return combat(components, labels, with_class=True)
