"""The figures about training show the numbers that they are given."""

import numpy as np
import pytest
from figure_checks import every_figure_is_legible  # noqa: F401

from cytomad_lib.plots.training import (
    cross_entropy_curve,
    discriminator_outputs,
    loss_curves,
    loss_parts,
    loss_table,
)


def test_pairs_share_the_brightfield_and_the_scale_of_phase():
    bf = np.random.default_rng(0).random((16, 16, 1))
    pairs = {
        "measured": (bf, np.full((16, 16, 1), 3.0), np.full((4, 4, 1), 0.9)),
        "generated": (bf, np.zeros((16, 16, 1)), np.full((4, 4, 1), 0.2)),
    }
    panels = np.array(discriminator_outputs(pairs, 0.7).axes[:6]).reshape(2, 3)
    assert len({panel.images[0].get_clim() for panel in panels[:, 1]}) == 1
    assert {panel.collections[0].get_clim() for panel in panels[:, 2]} == {(0.0, 1.0)}
    assert [panel.get_xlabel() for panel in panels[:, 2]] == ["mean 0.90", "mean 0.20"]
    for panel in panels[:, 0]:
        np.testing.assert_array_equal(panel.images[0].get_array(), bf[..., 0])


def test_patches_show_their_probabilities():
    random = np.random.default_rng(0)
    images = random.random((2, 16, 16))
    patches = random.random((2, 2))
    panel = discriminator_outputs({"measured": (*images, patches)}, 0.7).axes[2]
    np.testing.assert_array_equal(panel.collections[0].get_array(), patches)
    assert [text.get_text() for text in panel.texts] == [f"{p:.1f}" for p in patches.ravel()]
    many = discriminator_outputs({"measured": (*images, random.random((16, 16)))}, 0.7).axes[2]
    assert not many.texts  # there is no room for 256 numbers


def test_the_parts_add_up_to_the_loss():
    weights = {"adversarial": 1, "mae": 100}
    before = loss_table({"loss": 20.7, "mae": 0.2, "adversarial": 0.7}, weights)
    assert before["in the loss"].sum() == pytest.approx(20.7)
    assert list(before.index) == ["adversarial", "mae"]
    after = loss_table({"mae": 0.1, "adversarial": 0.5}, weights)
    panel = loss_parts({"before": before, "after": after}).axes[0]
    ends = sorted(patch.get_x() + patch.get_width() for patch in panel.patches)
    np.testing.assert_allclose(ends, [0.5, 0.7, 10.5, 20.7])
    assert [text.get_text() for text in panel.texts] == [" 21", " 10"]


def test_losses_share_a_panel_and_mark_the_best_epoch():
    history = {"loss": [50, 5, 1], "val_loss": [60, 4, 9], "mae": [0.3, 0.2, 0.2]}
    figure = loss_curves(history, title="Pretraining")
    loss, mae = figure.axes
    assert (loss.get_xlabel(), loss.get_ylabel(), mae.get_ylabel()) == ("epoch", "loss", "mae")
    assert (loss.get_yscale(), mae.get_yscale()) == ("log", "linear")
    training, validation, best = loss.get_lines()
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(validation.get_ydata(), history["val_loss"])
    assert best.get_xdata()[0] == 2
    assert "best epoch: 2" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_losses_not_there_are_an_error():
    with pytest.raises(ValueError, match="psnr"):
        loss_curves({"loss": [1]}, names=["psnr"])
    with pytest.raises(ValueError, match="0 epochs"):
        loss_curves({"loss": []})


def test_the_curve_marks_the_cross_entropies():
    (panel,) = cross_entropy_curve({"unsure": 0.5, "sure": 1.0}).axes
    points = np.array([line.get_xydata()[0] for line in panel.lines[1:]])
    np.testing.assert_allclose(points, [(0.5, np.log(2)), (1.0, 0.0)])
    assert "unsure: −ln 0.5 = 0.69" in [text.get_text() for text in panel.texts]
    with pytest.raises(ValueError, match="above 0"):
        cross_entropy_curve({"impossible": 0.0})
