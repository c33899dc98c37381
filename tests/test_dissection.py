"""Networks are taken apart without changing what they do."""

import numpy as np
import pytest

from cytomad_lib import networks
from cytomad_lib.conditional import networks as conditional_networks
from cytomad_lib.evaluation import dissection
from cytomad_lib.evaluation.bottleneck import split_generator
from cytomad_lib.evaluation.dissection import DissectionError

SIZE = 32
RNG = np.random.default_rng(0)
BRIGHTFIELD = RNG.normal(size=(5, SIZE, SIZE, 1)).astype("float32")
PHASE = RNG.normal(size=(5, SIZE, SIZE, 1)).astype("float32")


@pytest.fixture(scope="module")
def generator():
    return networks.build_generator(SIZE, 4, seed=0)


@pytest.fixture(scope="module")
def discriminator():
    return networks.build_discriminator(SIZE, 4, seed=0)


def test_blocks_of_a_generator(generator):
    table = dissection.block_table(generator)
    assert table["parameters"].sum() == generator.count_params()
    assert list(table.index[:6]) == [*(f"encoder {n}" for n in range(1, 5)), "bottleneck"] + [
        "decoder 1"
    ]
    assert list(table.index[-5:]) == [*(f"tail {n}" for n in range(1, 5)), "image"]
    assert list(table["height"][:5]) == [16, 8, 4, 2, 1]
    assert list(table["channels"][:5]) == networks.encoder_widths(SIZE, 4) + [32]
    # What a decoder block gets beside is what the mirrored encoder block made.
    mirrored = [table.loc[f"encoder {n}", "channels"] for n in (4, 3, 2, 1)]
    assert [table.loc[f"decoder {n}", "joined"] for n in (1, 2, 3, 4)] == mirrored
    assert table.loc["tail 1", "joined"] == 1


@pytest.mark.parametrize(
    "network",
    [networks.build_discriminator(SIZE, 4), networks.build_cnn_classifier(3, SIZE, 4)]
    + [networks.build_batch_mlp(3, 8)],
    ids=lambda network: network.name,
)
def test_blocks_of_judges(network):
    table = dissection.block_table(network)
    assert table["parameters"].sum() == network.count_params()
    assert table.index[-1] == "answer"
    assert table.index.is_unique
    assert table["channels"].iloc[-1] == network.output_shape[-1]


def test_a_network_in_a_network_is_named():
    with pytest.raises(DissectionError, match="get_layer\\('generator'\\)"):
        dissection.block_table(conditional_networks.build_conditional_generator(SIZE, 2))


def test_each_path_is_exchanged_alone(generator):
    order = np.array([1, 2, 3, 4, 0])
    split = split_generator(generator)
    code = split.encode(BRIGHTFIELD)
    exchanged = dissection.exchange_paths(code, order)
    assert list(exchanged) == ["bottleneck"] + [
        *(f"skip {s}×{s}" for s in (2, 4, 8, 16)),
        "input image",
    ]
    own = [code.bottleneck, *code.skips]
    for number, changed in enumerate(exchanged.values()):
        for place, (before, after) in enumerate(
            zip(own, [changed.bottleneck, *changed.skips], strict=True)
        ):
            expected = before[order] if place == number else before
            np.testing.assert_array_equal(after, expected)


def test_judge_by_running_statistics_asks_cell_by_cell(discriminator):
    together = dissection.judge(discriminator, BRIGHTFIELD, PHASE)
    alone = dissection.judge(discriminator, BRIGHTFIELD[:1], PHASE[:1])
    assert together.shape == (5, 4, 4)
    np.testing.assert_allclose(together[:1], alone, atol=1e-6)


def test_judge_by_minibatch_depends_on_the_others_and_changes_nothing(discriminator):
    before = [value.copy() for value in discriminator.get_weights()]
    together = dissection.judge(discriminator, BRIGHTFIELD, PHASE, "minibatch")
    fewer = dissection.judge(discriminator, BRIGHTFIELD[:2], PHASE[:2], "minibatch")
    assert np.abs(together[:2] - fewer).max() > 1e-4
    for old, new in zip(before, discriminator.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_unknown_statistics_are_refused(discriminator):
    with pytest.raises(DissectionError, match="running, minibatch"):
        dissection.judge(discriminator, BRIGHTFIELD, PHASE, "batch")


def test_a_patch_can_see_94_pixels():
    published = networks.build_discriminator(128, 2, seed=0)
    first, last = dissection.seen_window(published, 8)
    assert last - first + 1 == 94
    # The even kernels have no middle: the window is not centred on the patch (pixels 64 to 71).
    assert (first + last) / 2 == 67.5 + 12


def test_what_is_outside_the_window_changes_nothing():
    # 128 pixels, so that the window of a corner patch leaves a part of the image unseen.
    network = networks.build_discriminator(128, 2, seed=0)
    # Initial weights are so small that the edge of the window would be lost in rounding.
    network.set_weights([4 * w if w.ndim == 4 else w for w in network.get_weights()])
    first, last = dissection.seen_window(network, 2)
    assert first < 0 < last < 127
    one = np.zeros((2, 128, 128, 1), "float32")
    one[1, : last + 1] = 5.0  # all rows that can be seen
    unseen = np.zeros((2, 128, 128, 1), "float32")
    unseen[1, last + 1 :] = 5.0
    blank = np.zeros_like(one)
    inside = dissection.judge(network, blank, one)[:, 2, 8]
    outside = dissection.judge(network, blank, unseen)[:, 2, 8]
    assert inside[0] != inside[1]
    assert outside[0] == pytest.approx(outside[1], abs=1e-9)
    beyond = dissection.judge(network, blank, unseen)[:, 3, 8]
    assert beyond[0] != beyond[1]  # the next patch sees it


def test_sensitivity_finds_the_spot_that_matters(discriminator):
    heard = dissection.sensitivity(discriminator, BRIGHTFIELD[:1], PHASE[:1], (0, 0), spot=8)
    assert heard.shape == (4, 4)
    assert heard[0, 0] > heard[3, 3]
    changed = PHASE[:1].copy()
    changed[:, 8:16, 16:24] += 0.5
    answers = [
        dissection.judge(discriminator, BRIGHTFIELD[:1], phase)[0, 0, 0].astype("float64")
        for phase in (PHASE[:1], changed)
    ]
    expected = np.abs(np.diff(np.log(answers) - np.log1p(np.negative(answers))))[0]
    assert heard[1, 2] == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_sensitivity_is_the_mean_over_pairs(discriminator):
    both = dissection.sensitivity(discriminator, BRIGHTFIELD[:2], PHASE[:2], (1, 2), spot=16)
    single = [
        dissection.sensitivity(discriminator, BRIGHTFIELD[k], PHASE[k], (1, 2), spot=16)
        for k in (slice(0, 1), slice(1, 2))
    ]
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-5)
    assert not np.allclose(*single)


def test_sensitivity_needs_pairs_and_spots_that_fit(discriminator):
    with pytest.raises(DissectionError, match="5 brightfield and 4 phase images"):
        dissection.sensitivity(discriminator, BRIGHTFIELD, PHASE[:4], (0, 0))
    with pytest.raises(DissectionError, match="spots of 5"):
        dissection.sensitivity(discriminator, BRIGHTFIELD[:1], PHASE[:1], (0, 0), spot=5)


def test_there_is_no_such_patch(discriminator):
    with pytest.raises(DissectionError, match="0 to 3"):
        dissection.seen_window(discriminator, 4)
