"""Per-batch standardisation inside each class: each class keeps its own mean and spread."""

from cytomad_lib.evaluation.components import noisy_components
from cytomad_lib.evaluation.methods.standardise import standardise_batches

NAME = "per-batch standardisation within class"
NEEDS = "class"


def transform(seed, features, images, labels):
    """Standardise the components of the cells, batch by batch in each class."""
    components = noisy_components(features, seed)
    return standardise_batches(components, labels, within_class=True)
