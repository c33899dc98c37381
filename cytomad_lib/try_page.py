"""A page on which the browser itself runs the generator, for visitors without an installation.

One simulated cell, imaged on seven days: does its predicted phase change from day to day, and how
much does each component of the bottleneck change it? `write_page` writes a folder for any static
web server: the page (`web/`), the networks as ONNX, the cells, and ONNX Runtime Web, which is
fetched from npm and verified by its hash. The page loads nothing else.

Example
-------
>>> write_page("try")                    # then: python -m http.server --directory try
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
from sklearn.decomposition import PCA

from cytomad_lib.backend import keras
from cytomad_lib.course import trained
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import written_beside
from cytomad_lib.data.layouts import LUNG, WAVELENGTH_UM
from cytomad_lib.evaluation.bottleneck import split_generator
from cytomad_lib.evaluation.image_quality import dry_mass_pg, foreground_mask
from cytomad_lib.export import write_onnx
from cytomad_lib.plots.style import PHASE_MAP, colour_limits
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.simulation.morphology import FIELD_OF_VIEW_UM
from cytomad_lib.simulation.write import DEMO_DATASET, STEP, round_to_step

COMPONENTS = 4  # of the bottleneck; the page has a slider for each
# Later versions are up to 3 MB larger, and do no more for a small network on one thread.
RUNTIME = "onnxruntime-web@1.22.0"
RUNTIME_SHA256 = "e293551f9d36d003e293d0f2937fee7b3dfdcef76d71d1449b55e2d4157c7aea"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
PACKED = (".bin", ".onnx", ".wasm")  # what gzip makes smaller; the page unpacks it
STEPS = {  # what the whole numbers in the file of cells count
    "brightfield": STEP["BF"],
    "measured": STEP["QPI"],
    "truth": STEP["QPI_TRUE"],
    "inside": 1.0,
}
STAGES = {
    "pretraining": "pretrained, no batch removal",
    "published": "published recipe of batch removal",
    "conditional": "conditional recipe of batch removal",
}


def write_page(out, run=None):
    """Write the page and all that it loads.

    Parameters
    ----------
    out : path
        A folder. Files of an earlier page in it are replaced.
    run : Run, optional
        Of the lung dataset. By default the trained models that come with the notebooks.

    Returns
    -------
    list of Path
        The files written; the page is `index.html`.

    Raises
    ------
    CytomadError
        If the run is of another dataset, or npm or what writes ONNX is missing.
    """
    out, run = Path(out), run or trained("lung")
    if run.settings["dataset"] != LUNG.name:
        raise CytomadError(
            f"The run in {run.folder} is of the dataset {run.settings['dataset']!r}. Expected a "
            f"run of {LUNG.name!r}, whose cells the page can simulate; give another run."
        )
    web = resources.files("cytomad_lib").joinpath("web")
    files = {source.name: source.read_bytes() for source in web.iterdir()} | fetch_runtime()
    images = simulate_days(run.preset.image_size)
    files["page.json"] = json.dumps(_describe(run, images)).encode()
    files["cells.bin"] = _as_steps(images).tobytes()
    brightfield = images["brightfield"].reshape(-1, *images["brightfield"].shape[2:], 1)
    for stage in run.stages():
        files[f"{stage}.onnx"] = _as_onnx(with_sliders(run.generator(stage), brightfield))
    return [_write(out, name, data) for name, data in files.items()]


def simulate_days(image_size):
    """Simulate the first Test cell of each group of the demonstration data, imaged on every day.

    Returns
    -------
    dict of float32 arrays (cells, days, size, size)
        `"brightfield"` and `"measured"` phase (rad); `"truth"` (rad) and `"inside"` (1 inside the
        cell, 0 elsewhere) for one day, as they are the same on each.
    """
    made = {"brightfield": [], "measured": [], "truth": []}
    for group in LUNG.groups:
        where = {"seed": DEMO_DATASET["seed"], "image_size": image_size, "seen_in": group.batch}
        days = [simulate_cells(group.class_name, 1, day, **where) for day in LUNG.batches]
        made["brightfield"].append([round_to_step(day.brightfield[0], "BF") for day in days])
        made["measured"].append([round_to_step(day.qpi[0], "QPI") for day in days])
        made["truth"].append(round_to_step(days[0].truth, "QPI_TRUE"))
    images = {kind: np.array(parts) for kind, parts in made.items()}
    images["inside"] = foreground_mask(images["truth"][:, 0]).astype("float32")[:, None]
    return images


def with_sliders(generator, brightfield):
    """Return a generator whose bottleneck and skip connections are inputs, too.

    Parameters
    ----------
    generator : keras.Model
    brightfield : float32 array (cells, size, size, channels)
        The principal components of the bottleneck are those of these cells.

    Returns
    -------
    keras.Model
        `brightfield`, `shift` (n, `COMPONENTS`) and `skips` (n, 1, 1, 1) -> phase image (rad). The
        bottleneck is moved along its first components by `shift`, in standard deviations. The
        skip connections are multiplied by `skips`: 1 keeps them, 0 leaves the bottleneck alone.
    """
    split = split_generator(generator)
    image = keras.Input(generator.input_shape[1:], name="brightfield")
    shift = keras.Input((COMPONENTS,), name="shift")
    kept = keras.Input((1, 1, 1), name="skips")
    bottleneck, *skips = split.encoder(image)
    along = keras.layers.Dense(bottleneck.shape[-1], use_bias=False, name="components")
    bottleneck = bottleneck + along(keras.ops.reshape(shift, (-1, 1, 1, COMPONENTS)))
    phase = split.decoder([bottleneck, *[skip * kept for skip in skips]])
    along.set_weights([principal_components(split.encode(brightfield).bottleneck)])
    return keras.Model([image, shift, kept], phase)


def principal_components(features, count=COMPONENTS):
    """Return the first principal components of features, each as long as its standard deviation.

    Parameters
    ----------
    features : array (cells, n_features)
    count : int

    Returns
    -------
    array (count, n_features)
        The largest entry of each is positive, so that a slider has one direction on all machines.
    """
    found = PCA(count, svd_solver="full").fit(features)  # which makes that entry positive
    return found.components_ * found.singular_values_[:, None] / np.sqrt(len(features))


def fetch_runtime():
    """Fetch the files of ONNX Runtime Web by npm, which keeps a copy in its own cache.

    Returns
    -------
    dict of str to bytes
        The contents of `RUNTIME_FILES`.

    Raises
    ------
    CytomadError
        If npm is missing or cannot fetch them, or the package is not the one that was tested.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise CytomadError(
            f"There is no npm on this machine. Expected it to fetch {RUNTIME}, which runs networks "
            "in a browser; install Node.js, which brings it."
        )
    with TemporaryDirectory() as folder:
        command = [npm, "pack", RUNTIME, "--prefer-offline", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archive = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or archive is None:
            raise CytomadError(
                f"npm could not fetch {RUNTIME}: {done.stderr.strip()[-500:] or 'no reason given'}"
                ". Expected a connection to npm's packages; try again when there is one."
            )
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != RUNTIME_SHA256:
            raise CytomadError(
                f"The package {archive.name} from npm has the SHA-256 {found}. Expected "
                f"{RUNTIME_SHA256}: it is damaged, or another one. Try again; nothing was written."
            )
        with tarfile.open(archive) as package:
            return {
                name: package.extractfile(f"package/dist/{name}").read() for name in RUNTIME_FILES
            }


def _as_onnx(model):
    """Return a model as the bytes of an ONNX file."""
    with TemporaryDirectory() as folder:
        path = write_onnx(model, Path(folder) / "model.onnx", outputs=("image",))
        return path.read_bytes()


def _describe(run, images):
    """Return what the page has to know of its files, for `page.json`."""
    pixel_um = FIELD_OF_VIEW_UM / run.preset.image_size
    pixel = np.ones((1, 1, 1))
    return {
        "runtime": RUNTIME,
        "size": run.preset.image_size,
        "field_um": FIELD_OF_VIEW_UM,
        "pg_per_rad": dry_mass_pg(pixel, pixel, pixel_um, WAVELENGTH_UM)[0],  # in one pixel
        "days": LUNG.batches,
        "cells": [{"line": group.class_name, "day": group.batch} for group in LUNG.groups],
        "planes": [[kind, stack.shape[1], STEPS[kind]] for kind, stack in images.items()],
        "limits": {
            "brightfield": colour_limits(images["brightfield"]),
            "phase": (0.0, colour_limits(images["measured"])[1]),
        },
        "colours": (np.array(matplotlib.colormaps[PHASE_MAP].colors) * 255)
        .round()
        .astype(int)
        .tolist(),
        "components": COMPONENTS,
        "stages": [{"name": stage, "title": STAGES[stage]} for stage in run.stages()],
    }


def _as_steps(images):
    """Return the images as whole numbers of steps, (cells, planes, size, size)."""
    stacks = [np.rint(stack / STEPS[kind]) for kind, stack in images.items()]
    return np.concatenate(stacks, axis=1).astype("<i2")


def _write(out, name, data):
    """Write a file of the page, packed where that makes it smaller; return its path."""
    if name.endswith(PACKED):
        name, data = f"{name}.gz", gzip.compress(data, mtime=0)
    with written_beside(out / name) as path:
        path.write_bytes(data)
    return out / name
