"""The conditional recipe of batch removal, which is ours: `recipe` reads like the algorithm."""

import cytomad_lib.backend  # noqa: F401  (Keras without TensorFlow's remarks)
