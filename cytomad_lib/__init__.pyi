"""The names of the façade, and where each one is defined.

`cytomad_lib/__init__.py` loads them from here, and editors and type checkers read them.
"""

from .config import DEMO, PUBLISHED, STUDY, WORKSHOP, Preset
from .data.cells import CellFiles, CellImages, load_cells
from .data.check import check_dataset
from .data.download import download_dataset
from .data.layouts import find_layout
from .data.public import load_phenotypes
from .evaluation.compare import compare
from .evaluation.evaluate import evaluate
from .networks import build_discriminator, build_generator
from .prediction import predict
from .runs import Run
from .simulation import simulate_cells
from .training.recipes import fit_classifiers, pretrain, remove_batches

__version__: str
__all__ = [
    "CellFiles",
    "CellImages",
    "DEMO",
    "PUBLISHED",
    "Preset",
    "Run",
    "STUDY",
    "WORKSHOP",
    "build_discriminator",
    "build_generator",
    "check_dataset",
    "compare",
    "download_dataset",
    "evaluate",
    "find_layout",
    "fit_classifiers",
    "load_cells",
    "load_phenotypes",
    "predict",
    "pretrain",
    "remove_batches",
    "simulate_cells",
]
