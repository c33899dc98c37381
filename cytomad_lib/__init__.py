"""CytoMAD teaching kit: brightfield to quantitative phase, with batch effects removed.

One import gives what notebooks and scripts need. Each name is loaded when it is first used, so the
import itself takes no time.

Example
-------
>>> import cytomad_lib as cyto
>>> cells = cyto.load_cells("Dataset/7LungCancerDataset", "Train", cells_per_group=10)
>>> run = cyto.Run.create("results/run", cyto.DEMO, cells, "lung", seed=0)
"""

import os
from importlib import import_module

__version__ = "0.1.0"

# TensorFlow reports missing GPU drivers and the like on every start; a learner reads errors
# into it. Set the variable yourself to see those lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_MODULE_OF = {
    "CellFiles": "data.cells",
    "CellImages": "data.cells",
    "load_cells": "data.cells",
    "check_dataset": "data.check",
    "find_layout": "data.layouts",
    "simulate_cells": "simulation",
    "Preset": "config",
    "DEMO": "config",
    "STUDY": "config",
    "WORKSHOP": "config",
    "PUBLISHED": "config",
    "build_generator": "networks",
    "build_discriminator": "networks",
    "Run": "runs",
    "pretrain": "training.recipes",
    "fit_classifiers": "training.recipes",
    "remove_batches": "training.recipes",
    "predict": "prediction",
    "evaluate": "evaluation.evaluate",
    "compare": "evaluation.compare",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    """Load a name of the façade; Python calls this for names that are not there yet."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"cytomad_lib.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    """List the names of the façade, too, for completion in notebooks."""
    return sorted({*globals(), *__all__})
