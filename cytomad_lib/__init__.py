"""CytoMAD teaching kit: brightfield to quantitative phase, with batch effects removed.

One import gives what notebooks and scripts need. Each name is loaded when it is first used, so the
import itself takes no time. `__init__.pyi` lists the names.

Example
-------
>>> import cytomad_lib as cyto
>>> cells = cyto.load_cells("Dataset/7LungCancerDataset", "Train", cells_per_group=10)
>>> run = cyto.Run.create("results/run", cyto.DEMO, cells, "lung", seed=0)
"""

import os

import lazy_loader

__version__ = "0.1.0"

# TensorFlow reports missing GPU drivers and the like on every start; a student reads errors
# into it. Set the variable yourself to see those lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
