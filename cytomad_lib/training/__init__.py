"""The training stages and their losses."""

import cytomad_lib.backend  # noqa: F401  (Keras without TensorFlow's remarks)
