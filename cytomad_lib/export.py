"""Models for other programs: a generator as an ONNX file.

What is exported is the function that `predict` computes in its mode "running": batch normalisation
by running statistics, no dropout, each cell by itself. So a generator of the conditional recipe is
exported whole: one input, from which one network computes the image and another one the features,
with the layers that normalise and clean the images.

The file holds one input, `brightfield` (n, size, size, channels), and two outputs, `image`
(n, size, size, 1) and `features` (n, n_features), all float32; n is free. Its metadata say from
which run it is, what goes in and comes out, and the size of a pixel.

Keras writes the file, with tf2onnx, so export needs TensorFlow as Keras' engine. A program that
runs the file needs neither.

Example
-------
>>> write_onnx(Run.open("results/run"), "results/generator.onnx", stage="conditional")
>>> session = onnxruntime.InferenceSession("results/generator.onnx")
>>> image, features = session.run(None, {"brightfield": cells.brightfield})
"""

import json
import logging
import warnings
from pathlib import Path

import numpy as np

import cytomad_lib
from cytomad_lib.backend import keras
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import written_beside
from cytomad_lib.data.layouts import LAYOUTS
from cytomad_lib.layers import ordinary_convolutions
from cytomad_lib.packages import find_package
from cytomad_lib.runs import Run

OPSET = 17  # of ONNX: all current runtimes know it, those in a browser, too
OUTPUTS = ("image", "features")


class ExportError(CytomadError):
    """A model cannot be exported as asked for."""


def write_onnx(run_or_model, path, stage=None, opset=OPSET, outputs=OUTPUTS):
    """Write a generator as an ONNX file.

    Parameters
    ----------
    run_or_model : Run or keras.Model
        A model may be any, such as one of `load_legacy_generator`.
    path : path
        A file that is there is replaced.
    stage : {"pretraining", "published", "conditional"}, optional
        Of a run, by default that of `run.last_stage()`.
    opset : int
        Version of ONNX's operators.
    outputs : sequence of str
        Their names, as many as the model has.

    Returns
    -------
    Path

    Raises
    ------
    ExportError
        If Keras runs on another engine than TensorFlow.
    PackageError
        If an optional package is missing.
    RunError
        If the run has no such stage.
    WriteError
        If the file cannot be written.
    """
    check_engine()
    return write_model(*generator_and_source(run_or_model, stage), path, opset, outputs)


def write_model(model, about, path, opset=OPSET, outputs=OUTPUTS):
    """Write a model as an ONNX file, with what `generator_and_source` returns about it.

    Parameters
    ----------
    model : keras.Model
    about : dict of str
        For the metadata of the file.
    path, opset, outputs
        As in `write_onnx`.

    Returns
    -------
    Path
    """
    onnx, _ = find_package("onnx", "export"), find_package("tf2onnx", "export")
    # Keras exports only what was called before, and a model that was just loaded was not.
    model([np.zeros((1, *part.shape[1:]), np.float32) for part in model.inputs], training=False)
    with written_beside(path) as beside:
        _export_quietly(model, beside, opset)
        graph = onnx.load(beside)
        _rename(graph.graph, outputs)
        _average_one_axis_at_a_time(onnx, graph.graph)
        onnx.helper.set_model_props(graph, about)
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, beside)
    return Path(path)


def generator_and_source(run_or_model, stage=None):
    """Return the generator to export, and what to write into its file about it.

    Parameters
    ----------
    run_or_model, stage
        As in `write_onnx`.

    Returns
    -------
    model : keras.Model
    about : dict of str
    """
    if not isinstance(run_or_model, Run):
        return run_or_model, {"cytomad_lib": cytomad_lib.__version__}
    run, stage = run_or_model, stage or run_or_model.last_stage()
    images = run.settings.get("images") or LAYOUTS[run.settings["dataset"]].images
    about = {
        "cytomad_lib": cytomad_lib.__version__,
        "dataset": run.settings["dataset"],
        "stage": stage,
        "seed": str(run.seed),
        "input": json.dumps(images["input"]),
        "target": images["target"],
        "pixel_size_um": str(run.settings["pixel_size_um"]),
    }
    return run.generator(stage), about


def check_engine():
    """Refuse to export from another engine than TensorFlow; raises ExportError."""
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Keras runs on {keras.backend.backend()!r}. Expected 'tensorflow' to export a model; "
            "set the environment variable KERAS_BACKEND to it. Runs of both engines are the same."
        )


def _export_quietly(model, path, opset):
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # tf2onnx tells every step of its own
    try:
        with warnings.catch_warnings(), ordinary_convolutions():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of NumPy, about Keras
            model.export(str(path), format="onnx", opset_version=opset, verbose=False)
    finally:
        logging.disable(before)


def _rename(graph, outputs):
    """Name the outputs, and the number of cells, for which the converter has only counters."""
    names = dict(zip([output.name for output in graph.output], outputs, strict=True))
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names[value.name]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    del graph.value_info[:]  # sizes in between, which the checker finds again


def _average_one_axis_at_a_time(onnx, graph):
    """Split means over both axes of an image, so that runtimes lose fewer digits.

    A runtime may add all pixels one after the other in float32. TensorFlow adds in a tree. The
    difference in contrast, multiplied by a deep network, is one in the fourth digit of a feature.
    """
    nodes = []
    for node in graph.node:
        axes = [axis for part in node.attribute if part.name == "axes" for axis in part.ints]
        if node.op_type != "ReduceMean" or len(axes) != 2:
            nodes.append(node)
            continue
        between, mean = f"{node.output[0]}_of_lines", onnx.helper.make_node
        nodes.append(mean("ReduceMean", node.input, [between], axes=axes[1:], keepdims=1))
        nodes.append(mean("ReduceMean", [between], node.output, axes=axes[:1], keepdims=1))
    del graph.node[:]
    graph.node.extend(nodes)
