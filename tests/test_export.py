"""An exported model computes what `predict` computes, and needs neither Keras nor this library."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tf2onnx", reason="export needs `pip install '.[export]'`")
onnx = pytest.importorskip("onnx", reason="export needs `pip install '.[export]'`")
ort = pytest.importorskip("onnxruntime", reason="export needs `pip install '.[export]'`")

from cytomad_lib import cli  # noqa: E402
from cytomad_lib.backend import keras  # noqa: E402
from cytomad_lib.data.cells import load_cells  # noqa: E402
from cytomad_lib.export import OPSET, ExportError, write_onnx  # noqa: E402
from cytomad_lib.legacy import load_legacy_generator  # noqa: E402
from cytomad_lib.packages import PackageError  # noqa: E402
from cytomad_lib.prediction import predict  # noqa: E402
from cytomad_lib.runs import STAGES, Run, RunError  # noqa: E402

ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "notebooks" / "trained" / "lung"
LEGACY = ROOT / "tests" / "data" / "legacy" / "model_000005.h5"
AGREEMENT = 1e-5  # of the largest value: features of a deep network carry rounding errors of that

ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "torch", "cytomad_lib"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
import onnxruntime

model, cells, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
image, features = session.run(["image", "features"], {"brightfield": np.load(cells)})
np.savez(out, image=image, features=features)
"""


@pytest.fixture(scope="module")
def cells():
    return load_cells(ROOT / "Dataset" / "7LungCancerDataset", "Test", 5)


def assert_agrees(found, prediction):
    for values, expected in zip(found, (prediction.images, prediction.features), strict=True):
        assert values.shape == expected.shape and values.dtype == np.float32
        assert np.abs(values - expected).max() <= AGREEMENT * np.abs(expected).max()


@pytest.mark.parametrize("stage", STAGES)
def test_an_exported_stage_predicts_as_keras_without_it(stage, cells, tmp_path):
    run, path = Run.open(TRAINED), tmp_path / "model.onnx"
    assert write_onnx(run, path, stage) == path
    np.save(tmp_path / "cells.npy", cells.brightfield)
    files = [str(tmp_path / name) for name in ("model.onnx", "cells.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True, cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as made:
        assert_agrees(made.values(), predict(run.generator(stage), cells))
    session = ort.InferenceSession(path)
    for n in (1, 3):  # any number of cells
        image, features = session.run(None, {"brightfield": cells.brightfield[:n]})
        assert len(image) == len(features) == n
    model = onnx.load(path)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {OPSET}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["stage"] == stage and about["dataset"] == "lung" and about["seed"] == "1"
    assert float(about["pixel_size_um"]) == cells.pixel_size_um
    assert about["target"] == "phase (rad)"


def test_the_command_line_exports_the_last_stage_and_published_files(tmp_path, monkeypatch, capsys):
    for model in (TRAINED, LEGACY):
        words = ["cytomad", "export", str(model), "--out", str(tmp_path / f"{model.stem}.onnx")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr().err
    about = {e.key: e.value for e in onnx.load(tmp_path / "lung.onnx").metadata_props}
    assert about["stage"] == "conditional"
    legacy = load_legacy_generator(LEGACY)
    images = np.random.default_rng(0).normal(1, 0.1, (2, *legacy.input_shape[1:])).astype("f4")
    found = ort.InferenceSession(tmp_path / "model_000005.onnx").run(None, {"brightfield": images})
    expected = legacy(images, training=False)
    for values, wanted in zip(found, map(keras.ops.convert_to_numpy, expected), strict=True):
        np.testing.assert_allclose(values, wanted, atol=AGREEMENT)


def test_what_prevents_an_export_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    run, path = Run.open(TRAINED), tmp_path / "model.onnx"
    with pytest.raises(RunError, match="no stage 'last'"):
        write_onnx(run, path, "last")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tf2onnx", None)
        with pytest.raises(PackageError, match=r"tf2onnx.*pip install '\.\[export\]'"):
            write_onnx(run, path)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ExportError, match="'torch'.*'tensorflow'"):
        write_onnx(run, path)
    assert not list(tmp_path.iterdir())
