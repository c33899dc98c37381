"""What a batch does to the phase: started from the cells, and never more than a microscope can."""

from dataclasses import replace

import numpy as np
from keras import ops
from scipy.signal import correlate2d
from training_cells import make_cells

from cytomad_lib.conditional.batch_effect import EFFECT_KERNEL, BatchEffect, batch_scales

IMAGES = np.random.default_rng(0).uniform(0, 2, (3, 16, 16, 1)).astype("float32")
EACH = np.arange(3, dtype="int32")


def seen_by(view, images=IMAGES, batch=EACH):
    return ops.convert_to_numpy(view(images, batch))


def scaled_cells(log_scales, thickness, per_group=30):
    """Return cells whose phase is scaled by their batch and by their class's thickness."""
    cells = make_cells(per_group)
    names = cells.labels[["batch", "class_name"]].astype(str)
    log_scale = names["batch"].map(log_scales) + np.log(names["class_name"].map(thickness))
    log_scale += np.random.default_rng(1).normal(0, 0.05, len(cells))
    factor = np.exp(log_scale.to_numpy(float))[:, None, None, None]
    return replace(cells, qpi=(cells.qpi * factor).astype("float32"))


# The two classes share Batch3 alone; Batch1 holds only the one, Batch6 only the other.
PLANTED = {"Batch1": 0.2, "Batch3": -0.05, "Batch6": -0.15}


def found_scales(cells):
    return dict(zip(cells.batches, batch_scales(cells), strict=True))


def test_scales_are_found_though_each_batch_holds_other_classes():
    cells = scaled_cells(PLANTED, {"H69": 1.0, "H520": 1.0})
    found = found_scales(cells)
    for batch, log_scale in PLANTED.items():
        np.testing.assert_allclose(found[batch], log_scale, atol=0.05)
    # Batches without cells stay as they are.
    assert all(found[batch] == 0 for batch in cells.batches if batch not in PLANTED)


def test_thicker_cells_are_not_taken_for_a_larger_scale():
    plain = found_scales(scaled_cells(PLANTED, {"H69": 1.0, "H520": 1.0}))
    cells = scaled_cells(PLANTED, {"H69": 1.0, "H520": 2.0})
    found = found_scales(cells)
    for batch in PLANTED:
        np.testing.assert_allclose(found[batch], plain[batch], atol=0.01)
    # Comparing the batches as they are would put Batch6 above Batch1.
    peaks = np.log(np.percentile(cells.qpi.reshape(len(cells), -1), 98, axis=1))
    names = cells.labels["batch"].to_numpy()
    assert peaks[names == "Batch6"].mean() > peaks[names == "Batch1"].mean() + 0.2


def test_cells_read_in_slices_give_the_same_scales(monkeypatch):
    cells = scaled_cells(PLANTED, {"H69": 1.0, "H520": 1.5}, per_group=5)
    whole = batch_scales(cells)
    in_slices = type(cells).in_slices
    monkeypatch.setattr(type(cells), "in_slices", lambda cells: in_slices(cells, 7))
    np.testing.assert_allclose(batch_scales(cells), whole, atol=1e-12)


def test_an_empty_image_does_not_give_an_infinite_scale():
    cells = scaled_cells(PLANTED, {"H69": 1.0, "H520": 1.0})
    cells.qpi[0] = 0
    assert np.isfinite(batch_scales(cells)).all()


def test_to_begin_with_nothing_is_changed():
    np.testing.assert_array_equal(seen_by(BatchEffect(3)), IMAGES)


def test_a_start_from_scales_multiplies_each_batch_relative_to_their_mean():
    view = BatchEffect(3)
    view.start_from_scales([0.3, 0.0, -0.2])
    factors = np.exp([0.3, 0.0, -0.2])
    factors += 1 - factors.mean()
    np.testing.assert_allclose(seen_by(view), IMAGES * factors[:, None, None, None], atol=1e-5)
    # Whose image it is counts, not its place among the images.
    swapped = seen_by(view, batch=np.array([2, 2, 0], "int32"))
    expected = IMAGES * factors[[2, 2, 0], None, None, None]
    np.testing.assert_allclose(swapped, expected, atol=1e-5)


def test_what_all_batches_have_in_common_changes_nothing():
    random = np.random.default_rng(2)
    view = BatchEffect(3)
    view.kernels.assign(random.normal(0, 0.1, view.kernels.shape))
    view.planes.assign(random.normal(0, 0.1, view.planes.shape))
    before = seen_by(view)
    assert np.abs(before - IMAGES).max() > 0.1
    view.kernels.assign(view.kernels + random.normal(size=(EFFECT_KERNEL, EFFECT_KERNEL, 1, 1)))
    view.planes.assign(view.planes + random.normal(size=(1, 3)))
    np.testing.assert_allclose(seen_by(view), before, atol=1e-4)


def test_the_changes_of_one_image_by_all_batches_add_up_to_none():
    view = BatchEffect(3)
    random = np.random.default_rng(3)
    view.kernels.assign(random.normal(0, 0.1, view.kernels.shape))
    view.planes.assign(random.normal(0, 0.1, view.planes.shape))
    one = np.repeat(IMAGES[:1], 3, axis=0)
    np.testing.assert_allclose(seen_by(view, one).mean(axis=0), IMAGES[0], atol=1e-5)


def test_a_plane_tilts_its_own_batch_against_all_others():
    view = BatchEffect(3)
    view.planes.assign([[0.1, 0.4, -0.2], [0, 0, 0], [0, 0, 0]])
    one = np.repeat(IMAGES[:1], 3, axis=0)
    first, second, third = seen_by(view, one)[..., 0]
    np.testing.assert_allclose(second, third, atol=1e-6)
    axis = np.linspace(-1, 1, 16)
    plane = 0.1 + 0.4 * axis[:, None] - 0.2 * axis[None]
    np.testing.assert_allclose(first - second, plane, atol=1e-5)


def test_a_kernel_blurs_as_a_small_filter_does():
    blur = np.outer([0, 1, 2, 1, 0], [0, 1, 2, 1, 0]) / 16
    change = blur.copy()
    change[2, 2] -= 1  # what blurring adds to an image
    view = BatchEffect(3)
    kernels = np.zeros(view.kernels.shape)
    kernels[..., 0, 1] = change
    view.kernels.assign(kernels)
    one = np.repeat(IMAGES[:1], 3, axis=0)
    first, second, third = seen_by(view, one)[..., 0]
    np.testing.assert_allclose(first, third, atol=1e-6)
    expected = correlate2d(IMAGES[0, ..., 0], change, mode="same")
    np.testing.assert_allclose(second - first, expected, atol=1e-5)
    inside = slice(3, -3)
    assert second[inside, inside].std() < 0.9 * first[inside, inside].std()
