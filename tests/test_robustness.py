"""Wrong, withheld and missing labels, and another kind of batch effect."""

import numpy as np
import pandas as pd
import pytest
from test_biology import CLASSES, labels, truth  # noqa: F401
from training_cells import make_cells

from benchmarks import robustness
from cytomad_lib.data.cells import load_cells
from cytomad_lib.simulation import simulate_dataset

SIDE = 64
NO_EFFECT = {
    "gamma": 1.0,
    "magnification": 1.0,
    "vignetting": 0.0,
    "motion": 1,
    "shift": np.zeros(2),
    "dust": np.zeros((0, 2)),
    "phase_gamma": 1.0,
}


@pytest.fixture
def disc():
    """A cell of 1 rad that takes some of the light, in an empty field of 1."""
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    phase = (y**2 + x**2 < 15**2).astype(float)[None]
    return 1 - 0.3 * phase, phase


def centre(images):
    weights = images[0] / images[0].sum()
    return np.array([(weights * axis).sum() for axis in np.indices((SIDE, SIDE))])


def test_a_day_without_effects_changes_nothing(disc):
    for changed, image in zip(robustness.other_effects(*disc, NO_EFFECT), disc, strict=True):
        np.testing.assert_allclose(changed, image, atol=1e-12)


def test_magnification_and_shift_act_on_both_images(disc):
    effects = NO_EFFECT | {"magnification": 1.06, "shift": np.array([2.0, -1.0])}
    bright, phase = robustness.other_effects(*disc, effects)
    assert phase.sum() / disc[1].sum() == pytest.approx(1.06**2, rel=0.01)
    for image, before in ((phase, disc[1]), (1 - bright, 1 - disc[0])):
        moved = centre(image) - centre(before)
        np.testing.assert_allclose(moved, [2, -1], atol=0.05)


def test_vignetting_and_dust_take_light_and_leave_the_phase(disc):
    effects = NO_EFFECT | {"vignetting": 0.2, "dust": np.array([[10.0, 50.0]])}
    bright, phase = robustness.other_effects(*disc, effects)
    np.testing.assert_allclose(phase, disc[1], atol=1e-12)
    assert bright[0, 0, 0] == pytest.approx(0.8, abs=0.01)
    assert disc[0][0, 10, 50] - bright[0, 10, 50] > 0.2


def test_motion_blurs_along_one_axis(disc):
    _, phase = robustness.other_effects(*disc, NO_EFFECT | {"motion": 4})
    across, along = (np.abs(np.diff(phase[0], axis=axis)).max() for axis in (0, 1))
    assert across == pytest.approx(1, abs=0.3) and along == pytest.approx(0.25, abs=0.01)


def test_gamma_bends_light_and_phase_and_keeps_the_empty_field(disc):
    effects = NO_EFFECT | {"gamma": 1.4, "phase_gamma": 0.8}
    bright, phase = robustness.other_effects(disc[0], 0.5 * disc[1], effects)
    assert bright[0, 0, 0] == pytest.approx(1) and phase[0, 0, 0] == 0
    assert bright[0, 32, 32] == pytest.approx(0.7**1.4)
    assert phase[0, 32, 32] == pytest.approx(0.5**0.8)


def test_a_withheld_class_is_told_apart_as_well_as_by_the_truth_or_not(truth, labels):  # noqa: F811
    share, chance = robustness.withheld_class(truth, truth, labels, "H520")
    assert share == pytest.approx(1) and 0.3 < chance < 0.5
    moved = {"H520": 3, "H69": 0, "HCC827": 0}  # H520 comes to lie where H69 is
    blind = truth + labels["class_name"].map(moved).to_numpy(dtype=float)[:, None]
    assert robustness.withheld_class(blind, truth, labels, "H520")[0] < 0.8


def test_wrong_labels_are_as_many_as_asked_and_all_wrong(labels):  # noqa: F811
    spoilt = robustness.with_wrong_labels(labels, 0.2, seed=1)
    wrong = (spoilt["class_name"] != labels["class_name"]).to_numpy()
    assert wrong.sum() == round(0.2 * len(labels))
    assert set(spoilt["class_name"][wrong]) == set(CLASSES)
    assert spoilt["class_name"].dtype == labels["class_name"].dtype
    pd.testing.assert_series_equal(spoilt["batch"], labels["batch"])
    pd.testing.assert_frame_equal(spoilt, robustness.with_wrong_labels(labels, 0.2, seed=1))
    some = labels[labels["class_name"] != "H69"]  # a category without cells is never drawn
    assert "H69" not in set(robustness.with_wrong_labels(some, 0.5)["class_name"])


def test_misfiled_cells_stay_in_a_class_of_their_batch():
    cells = make_cells(per_group=20)
    found = robustness.misfile(cells).labels
    wrong = found["class_name"] != cells.labels["class_name"]
    # Only Batch3 has two classes; a fifth of its 40 cells is exchanged.
    assert wrong.sum() == 8 and set(found["batch"][wrong]) == {"Batch3"}
    assert set(found["class_name"][wrong]) == {"H69", "H520"}
    assert set(cells.labels.groupby(["batch", "class_name"], observed=True).groups) == set(
        found.groupby(["batch", "class_name"], observed=True).groups
    )


def test_other_days_differ_in_their_files_and_not_in_the_truth(tmp_path):
    """The files are read again as any dataset is, and are written only once."""
    counts = {"Train": 1, "Valid": 1, "Test": 2}
    root = robustness.write_other_days(tmp_path / "other", counts)
    cells = load_cells(root, "Test", image_size=64, with_truth=True)
    simulate_dataset(
        tmp_path / "plain", "lung", cells_per_group=counts, seed=robustness.SEED, batch_strength=0
    )
    plain = load_cells(tmp_path / "plain" / root.name, "Test", image_size=64, with_truth=True)
    np.testing.assert_allclose(cells.truth, plain.truth, atol=1e-5)
    change = np.abs(cells.qpi - plain.qpi).mean(axis=(1, 2, 3))
    assert change.min() > 0.005  # rad
    assert cells.brightfield.shape == plain.brightfield.shape
    before = (root / "Batch1/H69/Test/H69_BF.mat").stat().st_mtime_ns
    robustness.write_other_days(tmp_path / "other", counts)
    assert (root / "Batch1/H69/Test/H69_BF.mat").stat().st_mtime_ns == before
