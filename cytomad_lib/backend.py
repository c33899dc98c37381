"""Keras, imported without the lines that TensorFlow writes on every start.

Modules that may be imported first take it from here: `from cytomad_lib.backend import keras`.
"""

import os


def _import_keras_quietly():
    """Import Keras without the lines that TensorFlow writes before its log level counts.

    They say that there is no GPU and which CPU instructions are used; learners read errors into
    them. Errors are raised as ever. Set TF_CPP_MIN_LOG_LEVEL to 0, 1 or 2 to see the lines.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        import keras

        return keras
    shown = os.dup(2)  # the lines are written by compiled code, past Python's sys.stderr
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            import keras
    finally:
        os.dup2(shown, 2)
        os.close(shown)
    return keras


keras = _import_keras_quietly()
