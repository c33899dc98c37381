"""Batches: what differs between them is in the images, and never in the truth."""

import dataclasses
import time

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cytomad_lib.data.layouts import LUNG
from cytomad_lib.simulation.acquisition import (
    NAMES,
    NOMINAL,
    PARAMETERS,
    batch_table,
    parameter_table,
    simulate_cells,
)
from cytomad_lib.simulation.optics import bin_pixels

SEED = 26


def background(images):
    """The frame of each image, where there is no cell."""
    frame = np.ones(images.shape[1:], bool)
    frame[6:-6, 6:-6] = False
    return images[:, frame]


def test_a_batch_depends_on_seed_and_name_only():
    whole = batch_table(SEED)
    part = batch_table(SEED, dataclasses.replace(LUNG, batches=("Batch5", "Batch2")))
    assert list(part.index) == ["nominal", "Batch5", "Batch2"]
    assert whole.loc[["Batch5", "Batch2"]].equals(part.loc[["Batch5", "Batch2"]])
    assert not np.any(batch_table(SEED + 1).iloc[1:] == whole.iloc[1:])


def test_batches_draw_within_their_ranges_and_differ():
    table, ranges = batch_table(SEED), parameter_table()
    assert list(table.columns) == list(ranges.index) == list(NAMES)
    assert table.attrs["units"]["defocus_um"] == "um"
    for name in NAMES:
        drawn = table.loc[list(LUNG.batches), name]
        assert drawn.between(ranges.low[name], ranges.high[name]).all()
        assert drawn.nunique() == len(LUNG.batches)
        assert ranges.low[name] <= table.loc["nominal", name] == NOMINAL[name] <= ranges.high[name]


def test_batch_strength_scales_the_deviations():
    full, half, none = (batch_table(SEED, batch_strength=s) for s in (1.0, 0.5, 0.0))
    nominal = full.loc["nominal"]
    np.testing.assert_allclose(half - nominal, 0.5 * (full - nominal), atol=1e-12)
    assert (none == nominal).all(axis=None)


def test_truth_depends_on_the_cell_alone():
    truth = simulate_cells("H520", 3, "Batch3", SEED).truth
    other_day = simulate_cells("H520", 3, "Batch7", SEED, seen_in="Batch3")
    no_effect = simulate_cells("H520", 3, "Batch3", SEED, batch_strength=0.0)
    assert np.array_equal(truth, other_day.truth)
    assert np.array_equal(truth, no_effect.truth)
    same_day = simulate_cells("H520", 3, "Batch3", SEED)
    assert np.array_equal(truth, same_day.truth)
    assert np.abs(other_day.qpi - same_day.qpi).max() > 0.1
    assert np.abs(no_effect.brightfield - same_day.brightfield).max() > 0.1
    # Another batch's own cells are other cells.
    assert not np.array_equal(truth, simulate_cells("H520", 3, "Batch7", SEED).truth)


def test_any_cell_can_be_made_on_its_own():
    many = simulate_cells("H1975", 20, "Batch4", SEED)
    few = simulate_cells("H1975", [19, 3], "Batch4", SEED)
    for kind in ("brightfield", "qpi", "truth"):
        np.testing.assert_allclose(getattr(few, kind), getattr(many, kind)[[19, 3]], atol=1e-12)
    assert few.settings.equals(many.settings.loc[[19, 3]])


def test_splits_hold_different_cells():
    train = simulate_cells("H69", 2, "Batch1", SEED, split="Train").truth
    assert not np.array_equal(train, simulate_cells("H69", 2, "Batch1", SEED, split="Test").truth)


def test_image_size_changes_the_pixels_not_the_cell():
    small = simulate_cells("H358", 2, "Batch1", SEED, image_size=64)
    large = simulate_cells("H358", 2, "Batch1", SEED, image_size=128)
    np.testing.assert_allclose(bin_pixels(large.truth, 2), small.truth, atol=1e-12)
    assert small.settings.equals(large.settings)
    noise = large.settings["qpi_noise"].mean() + small.settings["qpi_noise"].mean()
    assert np.abs(bin_pixels(large.qpi, 2) - small.qpi).std() < noise


def test_measured_phase_is_the_truth_with_the_days_calibration():
    cells = simulate_cells("H358", 12, "Batch5", SEED)
    slope = [
        np.polyfit(bin_pixels(t, 8).ravel(), bin_pixels(q, 8).ravel(), 1)[0]
        for t, q in zip(cells.truth, cells.qpi, strict=True)
    ]
    np.testing.assert_allclose(slope, cells.settings["qpi_scale"], atol=0.06)
    assert cells.settings["qpi_scale"].mean() == pytest.approx(
        batch_table(SEED).qpi_scale["Batch5"], abs=0.05
    )


def test_background_slope_is_in_the_measured_phase():
    cells = simulate_cells("H69", 12, "Batch1", SEED)
    axis = (np.arange(64) + 0.5) * 45 / 64 - 22.5
    empty = background(cells.qpi)
    frame = np.ones((64, 64), bool)
    frame[6:-6, 6:-6] = False
    y, x = (c[frame] for c in np.meshgrid(axis, axis, indexing="ij"))
    design = np.stack([x, y, np.ones_like(x)], axis=1)
    fit = np.linalg.lstsq(design, empty.T, rcond=None)[0]
    np.testing.assert_allclose(fit[0], cells.settings["qpi_tilt_x"], atol=2e-4)
    np.testing.assert_allclose(fit[1], cells.settings["qpi_tilt_y"], atol=2e-4)
    noise = (empty.T - design @ fit).std(axis=0)
    np.testing.assert_allclose(noise, cells.settings["qpi_noise"], rtol=0.1)


def test_brightfield_background_is_gain_plus_offset():
    cells = simulate_cells("H69", 12, "Batch4", SEED)
    expected = cells.settings["gain"] + cells.settings["offset"]
    np.testing.assert_allclose(background(cells.brightfield).mean(axis=1), expected, atol=0.01)


def test_brightfield_fringe_runs_along_y():
    batch = batch_table(SEED).loc[list(LUNG.batches), "fringe"].idxmax()
    line = LUNG.classes_of_batch(batch)[0]
    images = simulate_cells(line, 12, batch, SEED, image_size=128).brightfield[:, :, :12]
    along_y, along_x = images.mean(axis=2).std(axis=1), images.mean(axis=1).std(axis=1)
    assert along_y.mean() > 1.5 * along_x.mean()


def test_nominal_acquisition_is_unbiased():
    cells = simulate_cells("H2170", 40, None, SEED)
    assert (cells.settings["na"] == NOMINAL["na"]).all()
    assert cells.settings["qpi_scale"].mean() == pytest.approx(1.0, abs=0.02)
    ratio = cells.qpi.sum() / cells.truth.sum()
    assert ratio == pytest.approx(1.0, abs=0.03)


def test_brightfield_tells_of_the_phase():
    """Inside the cell's rim the nucleus and granules are seen, so a network has what to learn."""
    cells = simulate_cells("H358", 8, "Batch1", SEED, image_size=128)
    for image, truth, gain in zip(
        cells.brightfield, cells.truth, cells.settings["gain"], strict=True
    ):
        inside = truth > 0.6 * truth.max()
        assert (image[inside] / gain).std() > 0.03


def batch_accuracy(images, batches):
    """How well a fresh linear probe tells the batches apart."""
    flat = images.reshape(len(images), -1)
    probe = make_pipeline(
        PCA(20, random_state=0), StandardScaler(), LogisticRegression(C=0.1, max_iter=500)
    )
    return cross_val_score(probe, flat, batches, cv=5).mean()


def test_batches_are_in_the_measured_images_but_not_in_the_truth():
    batches = LUNG.batches_of_class("H2170")
    cells = [simulate_cells("H2170", 50, batch, SEED, image_size=32) for batch in batches]
    labels = np.repeat(range(3), 50)
    accuracy = {
        kind: batch_accuracy(np.concatenate([getattr(c, kind) for c in cells]), labels)
        for kind in ("truth", "qpi", "brightfield")
    }
    # Chance is 1/3, and its standard deviation with 150 cells is 0.04.
    assert accuracy["truth"] < 0.47
    assert accuracy["qpi"] > 0.75
    assert accuracy["brightfield"] > 0.75
    alike = [
        simulate_cells("H2170", 50, b, SEED, image_size=32, batch_strength=0.0) for b in batches
    ]
    assert batch_accuracy(np.concatenate([c.qpi for c in alike]), labels) < 0.47


def test_classes_can_be_told_apart_in_the_truth():
    truth = np.concatenate(
        [simulate_cells(c, 40, None, SEED, image_size=32).truth for c in LUNG.classes]
    )
    # Chance is 1/7 = 0.14; real lines overlap, so it must not be perfect either.
    assert 0.35 < batch_accuracy(truth, np.repeat(range(7), 40)) < 0.9


def test_speed_at_full_size():
    simulate_cells("H358", 16, "Batch1", SEED, image_size=128)
    start = time.perf_counter()
    simulate_cells("H358", 96, "Batch1", SEED, image_size=128)
    assert 96 / (time.perf_counter() - start) > 40  # cells per second; 200 on two free cores


def test_bad_requests():
    with pytest.raises(ValueError, match="image_size is 8"):
        simulate_cells("H69", 1, image_size=8)
    with pytest.raises(ValueError, match="at least one"):
        simulate_cells("H69", 0)
    with pytest.raises(ValueError, match="H358"):
        simulate_cells("HeLa", 1)


def test_jitter_keeps_physical_values():
    settings = simulate_cells("H69", 200, "Batch1", SEED, image_size=16, batch_strength=4.0)
    for parameter in PARAMETERS:
        if "noise" in parameter.name or parameter.name in ("gain", "qpi_scale", "qpi_blur_um"):
            assert (settings.settings[parameter.name] >= 0).all()
    assert settings.settings["na"].between(0.2, 0.7).all()
