"""CytoMAD teaching kit: brightfield to quantitative phase, with batch effects removed."""

import os

__version__ = "0.1.0"

# TensorFlow reports missing GPU drivers and the like on every start; a learner reads errors
# into it. Set the variable yourself to see those lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
