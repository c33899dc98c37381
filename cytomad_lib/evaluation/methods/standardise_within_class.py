"""Per-batch standardisation inside each class: each class keeps its own mean and spread."""

from cytomad_lib.evaluation.components import active_components, with_noise
from cytomad_lib.evaluation.methods.standardise import fit, standardise_batches

NAME = "per-batch standardisation within class"
NEEDS = "class"
TRAINS_ON = ()

__all__ = ["fit", "transform"]


def transform(fitted, features, images, labels):
    """Standardise the components of the cells, batch by batch in each class."""
    components = with_noise(active_components(features)(features), fitted)
    return standardise_batches(components, labels, within_class=True)
