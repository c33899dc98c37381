"""Moving cells between days: filters that are known, noise, and what a probe makes of it."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cytomad_lib.conditional.batch_transfer import BatchTransfer
from cytomad_lib.data.cells import CellImages, load_cells
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.simulation.write import simulate_dataset

BATCHES = ("Batch1", "Batch3", "Batch4")  # the days of H69
CODES = [LUNG.batches.index(name) for name in BATCHES]


def phase_of_cells(n, seed=0):
    """Return smooth random blobs, (n, 16, 16), in rad: every spatial frequency has some power."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] - 7.5
    disc = np.clip(random.uniform(3, 6, n)[:, None, None] - np.hypot(x, y), 0, 2)
    texture = gaussian_filter(random.normal(size=(n, 16, 16)), (0, 0.5, 0.5))
    return disc + 0.3 * texture


def one_day(batch, phase, scale=1.0):
    """Return what each of three days makes of a phase: known filters, of first and second order."""
    blurred = gaussian_filter(phase, (0, 1, 1), mode="wrap")
    relief = np.roll(phase, 1, axis=2) - np.roll(phase, -1, axis=2)
    return {
        "Batch1": 1.0 - 0.2 * blurred,
        "Batch3": 0.8 + 0.3 * (phase - blurred) + 0.1 * relief,
        "Batch4": 1.1 - 0.1 * phase + 0.05 * phase**2,
    }[batch]


def cells_of_days(per_day=40, noise=(0, 0, 0), scales=(1, 1, 1)):
    random = np.random.default_rng(1)
    phases = {name: phase_of_cells(per_day, seed) for seed, name in enumerate(BATCHES)}
    images = [
        one_day(name, phase) + level * random.normal(size=phase.shape)
        for level, (name, phase) in zip(noise, phases.items(), strict=True)
    ]
    qpi = [scale * phase for scale, phase in zip(scales, phases.values(), strict=True)]
    labels = pd.DataFrame(
        {
            "batch": pd.Categorical(np.repeat(BATCHES, per_day), LUNG.batches),
            "class_name": pd.Categorical(["H69"] * 3 * per_day, LUNG.classes),
            "cell": np.tile(np.arange(per_day), 3),
        }
    )
    stack = [np.concatenate(parts)[..., None].astype("float32") for parts in (images, qpi)]
    return CellImages(*stack, labels=labels, pixel_size_um=1.0)


def moved_to(transfer, cells, batch):
    other = np.full(len(cells), LUNG.batches.index(batch))
    return transfer(cells.brightfield, cells.qpi, cells.batch_codes, other)[..., 0]


@pytest.mark.parametrize("scales", [(1, 1, 1), (1.0, 1.2, 0.9)])
@pytest.mark.parametrize("batch", BATCHES)
def test_known_filters_are_found_whatever_the_scale_of_the_phase(batch, scales):
    cells = cells_of_days(scales=scales)
    moved = moved_to(BatchTransfer.fit(cells), cells, batch)
    phase = cells.qpi[..., 0] / np.repeat(scales, 40)[:, None, None]
    wanted = one_day(batch, phase)
    error = np.sqrt(np.mean((moved - wanted) ** 2))
    unmoved = np.sqrt(np.mean((cells.brightfield[..., 0] - wanted) ** 2))
    assert error < 0.03 * unmoved + 1e-3


def test_who_stays_is_not_changed():
    cells = cells_of_days(noise=(0.05, 0.1, 0.2))
    transfer = BatchTransfer.fit(cells)
    same = transfer(cells.brightfield, cells.qpi, cells.batch_codes, cells.batch_codes)
    np.testing.assert_allclose(same, cells.brightfield, atol=1e-5)


def test_noise_takes_the_strength_of_the_new_day():
    cells = cells_of_days(per_day=150, noise=(0.02, 0.02, 0.2))
    transfer = BatchTransfer.fit(cells)
    for batch, level in (("Batch1", 0.02), ("Batch4", 0.2)):
        moved = moved_to(transfer, cells, batch)
        rest = moved - one_day(batch, cells.qpi[..., 0])
        for code in CODES:
            assert rest[cells.batch_codes == code].std() == pytest.approx(level, rel=0.15)


def test_slices_give_the_same_filters(monkeypatch):
    cells = cells_of_days(noise=(0.1, 0.1, 0.1))
    whole = BatchTransfer.fit(cells)
    in_slices = CellImages.in_slices
    monkeypatch.setattr(CellImages, "in_slices", lambda cells, at_once=0: in_slices(cells, 7))
    parts = BatchTransfer.fit(cells)
    np.testing.assert_allclose(parts.filters, whole.filters, atol=1e-9)
    np.testing.assert_allclose(parts.rest_power, whole.rest_power, rtol=1e-6, atol=1e-9)


def test_a_batch_without_cells_cannot_be_moved_to():
    cells = cells_of_days()
    transfer = BatchTransfer.fit(cells)
    assert list(transfer.present) == CODES
    with pytest.raises(ValueError, match=r"\[1\] are asked for.*\[0, 2, 3\]"):
        moved_to(transfer, cells, "Batch2")


def test_a_probe_takes_moved_cells_for_those_of_their_new_day(tmp_path):
    groups = [f"{batch}/H69" for batch in BATCHES]
    counts = {"Train": 120, "Test": 60}
    simulate_dataset(tmp_path, "lung", 32, counts, seed=4, groups=groups, progress=False)
    train, test = load_cells(tmp_path, "Train"), load_cells(tmp_path, "Test")
    probe = make_pipeline(PCA(20), StandardScaler(), LogisticRegression(max_iter=1000))

    def pixels(images):
        # Brightness and contrast set off, so that it has to look at the picture.
        flat = images.reshape(len(images), -1)
        return (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)

    probe.fit(pixels(train.brightfield), train.batch_codes)
    assert np.mean(probe.predict(pixels(test.brightfield)) == test.batch_codes) > 0.85
    transfer = BatchTransfer.fit(train)
    other = np.array(CODES)[(np.searchsorted(CODES, test.batch_codes) + 1) % 3]
    moved = transfer(test.brightfield, test.qpi, test.batch_codes, other)
    said = probe.predict(pixels(moved))
    assert np.mean(said == other) > 0.8 and np.mean(said == test.batch_codes) < 0.1
