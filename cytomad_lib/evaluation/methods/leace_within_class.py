"""LEACE of the batch inside the classes: the differences between classes stay."""

from cytomad_lib.evaluation.components import active_components
from cytomad_lib.evaluation.erasure import fit_leace, within_class_concept
from cytomad_lib.evaluation.methods.leace import transform

NAME = "LEACE within class"
NEEDS = "nothing"
TRAINS_ON = ("features", "batch", "class_name")

__all__ = ["fit", "transform"]


def fit(features, images, labels, seed):
    """Find the components of the training cells, and the map that erases the batch from them."""
    components = active_components(features)
    codes = (labels[name].cat.codes.to_numpy() for name in ("batch", "class_name"))
    return components, fit_leace(components(features), within_class_concept(*codes))
