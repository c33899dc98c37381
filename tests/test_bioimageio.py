"""A package of the BioImage Model Zoo says what it is, and gives elsewhere what Keras gives."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

NEEDED = "packages need `pip install '.[export]'`"
spec = pytest.importorskip("bioimageio.spec", reason=NEEDED)
ort = pytest.importorskip("onnxruntime", reason=NEEDED)

from cytomad_lib import bioimageio, cli, workflow  # noqa: E402
from cytomad_lib.data.cells import load_cells  # noqa: E402
from cytomad_lib.export import ExportError  # noqa: E402
from cytomad_lib.prediction import predict  # noqa: E402
from cytomad_lib.runs import Run  # noqa: E402

ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "notebooks" / "trained" / "lung"
DATA = ROOT / "Dataset" / "7LungCancerDataset"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "model.zip"
    words = [str(TRAINED), "--out", str(path), "--data", str(DATA), "--stage", "pretraining"]
    people = ["--author", "A. Student", "--author", "B. Teacher", "--licence", "CC-BY-4.0"]
    with pytest.MonkeyPatch.context() as patch:
        command = ["cytomad", "export", *words, "--format", "bioimageio", *people]
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return path


def test_the_description_is_valid_and_complete(package):
    found = spec.load_description(package, perform_io_checks=True)
    assert found.validation_summary.status == "valid-format", found.validation_summary
    assert [author.name for author in found.authors] == ["A. Student", "B. Teacher"]
    assert str(found.license) == "CC-BY-4.0"
    assert found.cite[0].doi == bioimageio.PAPER
    (cells,) = found.inputs
    pixel = json.loads((TRAINED / "run.json").read_text())["pixel_size_um"]
    assert [axis.id for axis in cells.axes] == ["batch", "y", "x", "channel"]
    assert [(axis.size, axis.unit, axis.scale) for axis in cells.axes[1:3]] == [
        (64, "micrometer", pixel)
    ] * 2
    image, features = found.outputs
    assert image.axes[-1].channel_names == ["phase (rad)"]
    assert features.axes[-1].channel_names[-1] == "f063"
    with zipfile.ZipFile(package) as file:
        text = file.read("README.md").decode()
    assert "# Validation" in text and "simulated" in text and "64 x 64 pixels of 0.7031 µm" in text
    assert "{" not in text


def test_the_packed_model_gives_the_packed_outputs_which_are_those_of_keras(package, tmp_path):
    with zipfile.ZipFile(package) as file:
        file.extractall(tmp_path)
    arrays = {name: np.load(tmp_path / f"{name}.npy") for name in ("image", "features")}
    cells = np.load(tmp_path / "brightfield.npy")
    first = load_cells(DATA, "Test").select(np.arange(bioimageio.TEST_CELLS))
    np.testing.assert_array_equal(cells, first.brightfield)
    expected = predict(Run.open(TRAINED).generator("pretraining"), first)
    np.testing.assert_allclose(arrays["image"], expected.images, atol=1e-5)
    np.testing.assert_allclose(arrays["features"], expected.features, atol=1e-5)
    found = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"brightfield": cells})
    for values, wanted in zip(found, arrays.values(), strict=True):
        tolerance = bioimageio.TOLERANCE
        np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance)


def test_the_test_of_the_model_zoo_passes_and_finds_a_wrong_output(package, tmp_path):
    core = pytest.importorskip(
        "bioimageio.core", reason="the zoo's own test needs `pip install '.[modelzoo]'` (100 MB)"
    )
    found = core.test_model(package)
    assert found.status == "passed", found.format()
    with zipfile.ZipFile(package) as file:
        file.extractall(tmp_path)
    image = np.load(tmp_path / "image.npy")
    np.save(tmp_path / "image.npy", image + 0.01)
    text = (tmp_path / "rdf.yaml").read_text()
    kept = [line for line in text.splitlines() if "sha256" not in line]
    (tmp_path / "rdf.yaml").write_text("\n".join(kept))
    assert core.test_model(tmp_path / "rdf.yaml").status != "passed"


def test_what_a_package_lacks_is_said(tmp_path, monkeypatch):
    path = tmp_path / "model.zip"
    with pytest.raises(ExportError, match="format 'h5'.*onnx, bioimageio"):
        workflow.export(TRAINED, path, "h5")
    with pytest.raises(ExportError, match="--data"):
        workflow.export(TRAINED, path, "bioimageio", authors=["A. Student"])
    with pytest.raises(ExportError, match="--author"):
        workflow.export(TRAINED, path, "bioimageio", data=DATA)
    with pytest.raises(ExportError, match=r"does not end in \.zip"):
        workflow.export(TRAINED, tmp_path / "model", "bioimageio", data=DATA, authors=["A."])

    def write_any(model, about, path):
        shutil.copy(TRAINED / "run.json", path)

    monkeypatch.setattr(bioimageio, "write_model", write_any)
    options = {"data": DATA, "authors": ["A. Student"], "licence": "mine"}
    with pytest.raises(ExportError, match="license.*SPDX.*GPL"):
        workflow.export(TRAINED, path, "bioimageio", "pretraining", **options)
    assert not list(tmp_path.iterdir())
