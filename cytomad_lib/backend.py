"""Keras, imported without the lines that TensorFlow writes on every start.

Modules that may be imported first take it from here: `from cytomad_lib.backend import keras`.
"""

import os

from cytomad_lib.data.errors import CytomadError

ENGINES = ("tensorflow", "torch")


class EngineError(CytomadError):
    """Keras cannot compute: its engine is missing, or none that this library works on."""


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


def _import_keras():
    try:
        keras = _import_keras_quietly()
    except (ImportError, ValueError) as error:  # ValueError: a name that Keras does not know
        name = os.environ.get("KERAS_BACKEND", "tensorflow")
        raise EngineError(
            f"Keras cannot load its engine {name!r} ({error}). Expected one of "
            f"{', '.join(ENGINES)}, installed; set the environment variable KERAS_BACKEND to one "
            f"that is, or install it, as with `pip install {ENGINES[0]}`."
        ) from error
    if keras.backend.backend() not in ENGINES:
        raise EngineError(
            f"Keras runs on {keras.backend.backend()!r}. Expected one of {', '.join(ENGINES)}; set "
            "the environment variable KERAS_BACKEND to one of them."
        )
    return keras


keras = _import_keras()


def replicas():
    """Count the devices that share what is being built or computed right now.

    Losses of Keras are divided by it, as gradients are summed over the devices.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
