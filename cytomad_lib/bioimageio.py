"""A generator as a package of the BioImage Model Zoo, for deepImageJ, ilastik, QuPath and others.

The package is a `.zip` file: the model as ONNX (`export`), a description of its inputs and outputs
(`rdf.yaml`), cells to test it with and what Keras predicts of them, a documentation, the licence
and the authors. `bioimageio test FILE` then checks that the model gives the same elsewhere.

Example
-------
>>> cells = CellFiles("Dataset/7LungCancerDataset", "Test", image_size=64)
>>> write_bioimageio(Run.open("results/run"), "model.zip", cells, ["Ada Lovelace"])
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import cytomad_lib
from cytomad_lib.data.files import written_beside
from cytomad_lib.data.layouts import is_simulated
from cytomad_lib.export import (
    OPSET,
    ExportError,
    check_engine,
    generator_and_source,
    write_model,
)
from cytomad_lib.packages import find_package
from cytomad_lib.prediction import predict

LICENCE = "GPL-3.0-or-later"  # that of the kit and of the models that come with it
TEST_CELLS = 4
TOLERANCE = 1e-4  # relative, and in rad: rounding errors of float32 are a tenth of that
PAPER = "10.1101/2023.11.06.565732"
DOCUMENTATION = """# {name}

Predicts the {target} of one cell from its image ({inputs}), and {n_features} numbers that describe
the cell, its features. Each cell is predicted by itself. The method is CytoMAD (doi:{paper}), here
its stage "{stage}": "pretraining" is pix2pix alone; "published" and "conditional" are two recipes
that remove the batch (the day of acquisition).

Input: {size} x {size} pixels of {pixel:.4g} µm, one cell in the middle, {channels} channel(s), not
normalised. Trained on {n_cells} cells of the dataset "{dataset}": batches {batches};
classes {classes}.

## Validation

The test cells in this package are {origin} ones, of a split that was not trained on. For a cell of
your own microscope, compare the predicted image with a measured one. Whether the features are free
of the batch is scored by probes that are trained afterwards, on cells whose batch and class you
know: `cytomad evaluate RUN DATA --out DIR` of the CytoMAD kit {version} does so.

## Limits

Cells of another microscope, magnification or kind than those above may be predicted wrongly,
without a sign of it in the image. Models of this kit serve teaching and research, no diagnosis.
"""


def write_bioimageio(run, path, cells, authors, stage=None, licence=LICENCE):
    """Write a generator as a package of the BioImage Model Zoo.

    Parameters
    ----------
    run : Run
    path : path
        A `.zip` file; one that is there is replaced.
    cells : CellFiles
        The first of them become the test input.
    authors : sequence of str
        Names of those who trained the model.
    stage : {"pretraining", "published", "conditional"}, optional
        By default that of `run.last_stage()`.
    licence : str
        Of the model, as SPDX names it.

    Returns
    -------
    Path

    Raises
    ------
    ExportError
        If the name of the file does not end in `.zip`, there is no author, or the licence is
        unknown.
    PackageError, RunError, WriteError
        As `export.write_onnx`.
    """
    check_engine()
    spec = find_package("bioimageio.spec", "export")
    if Path(path).suffix != ".zip":
        raise ExportError(f"{path} does not end in .zip. Expected a name that does; add it.")
    if not authors:
        raise ExportError("There is no author. Expected who trained the model; give --author NAME.")
    generator, about = generator_and_source(run, stage)
    some = cells.read(np.arange(min(TEST_CELLS, len(cells))))
    prediction = predict(generator, some)
    arrays = {
        "brightfield": some.brightfield,
        "image": prediction.images,
        "features": prediction.features,
    }
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        write_model(generator, about, folder / "model.onnx")
        text = _documentation(run, about, generator, is_simulated(cells.root))
        (folder / "README.md").write_text(text, encoding="utf-8")
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        description = _describe(spec.model.v0_5, folder, arrays, about, authors, licence)
        with written_beside(path) as beside:
            spec.save_bioimageio_package(description, output_path=beside)
    return Path(path)


def _documentation(run, about, generator, simulated):
    return DOCUMENTATION.format(
        name=_name(about),
        target=about["target"],
        inputs=" and ".join(json.loads(about["input"])),
        n_features=generator.output_shape[1][1],
        paper=PAPER,
        stage=about["stage"],
        size=generator.input_shape[1],
        channels=generator.input_shape[-1],
        pixel=run.settings["pixel_size_um"],
        n_cells=sum(run.settings["training_cells"].values()),
        origin="simulated" if simulated else "measured",
        dataset=about["dataset"],
        batches=", ".join(run.batches),
        classes=", ".join(run.classes),
        version=cytomad_lib.__version__,
    )


def _name(about):
    return f"CytoMAD {about['dataset']} {about['stage']}"


def _describe(v05, folder, arrays, about, authors, licence):
    """Return the description of the package in `folder`."""
    from pydantic import ValidationError  # which the optional package brings

    try:
        return v05.ModelDescr(
            name=_name(about),
            description=f"Predicts {about['target']} and features of a cell from brightfield",
            authors=[v05.Author(name=name) for name in authors],
            cite=[v05.CiteEntry(text="Lo et al. 2023, CytoMAD", doi=PAPER)],
            license=licence,
            documentation=v05.FileDescr(source=folder / "README.md"),
            tags=["cytomad", "pix2pix", "quantitative-phase", "virtual-staining", "batch-effect"],
            inputs=[_tensor(v05, folder, "brightfield", arrays, about)],
            outputs=[_tensor(v05, folder, name, arrays, about) for name in ("image", "features")],
            weights=v05.WeightsDescr(
                onnx=v05.OnnxWeightsDescr(source=folder / "model.onnx", opset_version=OPSET)
            ),
            config=v05.Config(
                bioimageio=v05.BioimageioConfig(
                    reproducibility_tolerance=[
                        v05.ReproducibilityTolerance(
                            relative_tolerance=TOLERANCE, absolute_tolerance=TOLERANCE
                        )
                    ]
                ),
            ),
        )
    except ValidationError as error:
        parts = [(*part["loc"], part["msg"]) for part in error.errors()]
        wrong = "; ".join(": ".join(map(str, part)) for part in parts)
        raise ExportError(
            f"The package cannot be described ({wrong}). Expected plain names of authors, and a "
            f"licence as SPDX names it, such as {LICENCE}; give others."
        ) from error


def _tensor(v05, folder, name, arrays, about):
    """Describe an input or output: its axes, and the file to test it with."""
    of_input, shape = name == "brightfield", arrays[name].shape
    axes = [v05.BatchAxis()]  # of features, no space follows
    space = v05.SpaceInputAxis if of_input else v05.SpaceOutputAxis
    pixel = {"unit": "micrometer", "scale": float(about["pixel_size_um"])}
    axes += [space(id=side, size=n, **pixel) for side, n in zip("yx", shape[1:-1], strict=False)]
    names = json.loads(about["input"]) if of_input else [about["target"]]
    if name == "features":
        names = [f"f{number:03d}" for number in range(shape[1])]
    axes.append(v05.ChannelAxis(channel_names=names))
    tensor = v05.InputTensorDescr if of_input else v05.OutputTensorDescr
    test = v05.FileDescr(source=folder / f"{name}.npy")
    return tensor(id=name, axes=axes, test_tensor=test, data=v05.IntervalOrRatioDataDescr())
