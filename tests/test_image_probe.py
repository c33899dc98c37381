"""The image probe must find weak traces of the batch, and nothing where there are none."""

import random

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from cytomad_lib.evaluation.image_probe import image_batch_accuracy
from cytomad_lib.evaluation.image_quality import ImageShapeError
from cytomad_lib.evaluation.probes import ProbeError

SIZE = 24
NOISE = 0.03
DESIGN = {"H69": (1, 2), "H358": (1, 3), "H520": (2, 3)}


def make_labels(design=DESIGN, per_group=20):
    rows = [(f"Batch{b}", c) for c, bs in design.items() for b in bs for _ in range(per_group)]
    return pd.DataFrame(rows, columns=["batch", "class_name"]).astype("category")


LABELS = make_labels()
NUMBER = LABELS["batch"].cat.codes.to_numpy()
COLUMNS = np.arange(SIZE)


def blobs(labels, size=SIZE, seed=0, noise=NOISE):
    """Draw cells of random size and place, with noise; they know nothing of class or batch."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    place = rng.normal(0, 0.05, (2, len(labels), 1, 1))
    radius = rng.uniform(0.2, 0.35, (len(labels), 1, 1))
    square = (y - place[0]) ** 2 + (x - place[1]) ** 2
    cells = np.exp(-2 * square / radius**2)
    return cells + rng.normal(0, noise, cells.shape)


def test_images_without_batch_stay_at_chance():
    found = image_batch_accuracy(blobs(LABELS), LABELS, n_folds=3, epochs=20)
    assert found.chance == pytest.approx(1 / 2)
    assert found.null_mean == pytest.approx(1 / 2, abs=0.01)
    # 120 cells: the null reaches about 1.6 standard errors of a coin above its mean.
    assert found.null_95 == pytest.approx(0.5 + 1.64 * np.sqrt(0.25 / 120), abs=0.02)
    assert abs(found.accuracy - 0.5) < 4 * np.sqrt(0.25 / 120)
    assert -0.25 < found.bits < 0.1


def blurred(clean):
    return np.stack([gaussian_filter(c, 0.5 * n) for c, n in zip(clean, NUMBER, strict=True)])


def striped(clean):
    # Not stronger than the noise, and at no fixed place: only the period tells.
    start = np.random.default_rng(1).uniform(0, 2 * np.pi, (len(clean), 1, 1))
    period = np.array([3, 5, 8])[NUMBER][:, None, None]
    return clean + NOISE * np.sin(2 * np.pi * COLUMNS / period + start)


def sloping(clean):
    return clean + (NUMBER - 1)[:, None, None] * 0.01 * (COLUMNS - SIZE / 2)


@pytest.mark.parametrize("mark", [blurred, striped, sloping])
def test_weak_trace_of_the_batch_is_found(mark):
    found = image_batch_accuracy(mark(blobs(LABELS)), LABELS, n_folds=3, epochs=40)
    assert found.accuracy > 0.7 > found.null_95 + 0.1
    assert found.bits > 0.2


def test_class_is_not_taken_for_batch():
    codes = LABELS["class_name"].cat.codes.to_numpy()[:, None, None]
    images = blobs(LABELS) + 0.2 * np.sin(2 * np.pi * COLUMNS / (3 + 2 * codes))
    found = image_batch_accuracy(images, LABELS, n_folds=3, epochs=20)
    assert abs(found.accuracy - 0.5) < 4 * np.sqrt(0.25 / 120)


def test_result_follows_the_seed_and_leaves_global_chance_alone():
    images = striped(blobs(LABELS))[..., None]
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = image_batch_accuracy(images, LABELS, seed=1, n_folds=2, epochs=2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(6)
    again = image_batch_accuracy(images, LABELS, seed=1, n_folds=2, epochs=2)
    other = image_batch_accuracy(images, LABELS, seed=2, n_folds=2, epochs=2)
    assert first.as_row() == again.as_row()
    assert first.confusion.equals(again.confusion)
    assert first.as_row() != other.as_row()


def test_groups_and_confusion_agree_with_the_accuracy():
    # H1975 was seen in Batch4 only: there is nothing to tell apart.
    labels = make_labels(DESIGN | {"H1975": (4,)}, per_group=6)
    found = image_batch_accuracy(blobs(labels), labels, n_folds=2, epochs=2)
    assert list(found.by_group.index) == ["H358", "H520", "H69"]
    assert found.accuracy == pytest.approx(found.by_group.mean())
    assert list(found.confusion.columns) == ["Batch1", "Batch2", "Batch3"]
    assert found.n_cells == found.confusion.to_numpy().sum() == 36
    # Groups are equally large here, so the mean recall is the share of cells that are right.
    assert found.accuracy == pytest.approx(np.trace(found.confusion) / 36)
    assert found.as_row()["cnn"] == found.accuracy


def test_unequal_groups_count_the_same():
    labels = pd.concat([make_labels({"H69": (1,)}, 40), make_labels({"H69": (2,)}, 8)])
    labels = labels.astype("str").astype("category").reset_index(drop=True)
    found = image_batch_accuracy(blobs(labels), labels, n_folds=2, epochs=2)
    recalls = np.diag(found.confusion) / found.confusion.sum(axis=1)
    assert found.accuracy == pytest.approx(recalls.mean())
    assert list(found.by_group.index) == ["H69"]


@pytest.mark.parametrize("shape", [(16, 16), (33, 21)])
def test_other_sizes_work(shape):
    labels = make_labels({"H69": (1, 2)}, 6)
    images = np.random.default_rng(0).normal(size=(12, *shape))
    images[6:] *= 3
    found = image_batch_accuracy(images, labels, n_folds=2, epochs=10)
    assert found.accuracy > 0.8


def test_constant_images_tell_nothing():
    labels = make_labels({"H69": (1, 2)}, 6)
    found = image_batch_accuracy(np.ones((12, 16, 16)), labels, n_folds=2, epochs=2)
    assert found.accuracy == pytest.approx(0.5)


def test_errors_say_what_was_found_and_expected():
    images = blobs(LABELS)
    with pytest.raises(ProbeError, match=r"shape \(119, 24, 24\) for 120 rows"):
        image_batch_accuracy(images[1:], LABELS)
    with pytest.raises(
        ImageShapeError, match=r"shape \(120, 576\); expected \(cells, height, width\)"
    ):
        image_batch_accuracy(images.reshape(120, -1), LABELS)
    with pytest.raises(ProbeError, match="at least 16 pixels"):
        image_batch_accuracy(images[:, :8], LABELS)
    with pytest.raises(ProbeError, match="`batch` is needed"):
        image_batch_accuracy(images, LABELS[["class_name"]])
    broken = images.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(ProbeError, match="1 of 120 cells .* row 3"):
        image_batch_accuracy(broken, LABELS)
    few = LABELS.groupby(["batch", "class_name"], observed=True).head(4).index
    with pytest.raises(ProbeError, match="H69 in Batch1: 4 cells; at least 5 are needed"):
        image_batch_accuracy(images[few], LABELS.loc[few])
    one = (LABELS["batch"] == "Batch1").to_numpy()
    with pytest.raises(ProbeError, match="No class was measured in two batches"):
        image_batch_accuracy(images[one], LABELS[one])
