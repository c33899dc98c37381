"""The figures about training show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest

from cytomad_lib.views.training_figures import (
    called_first_batch,
    judged_pairs,
    loss_parts,
    loss_table,
)


def test_pairs_share_the_brightfield_and_the_scale_of_phase():
    bf = np.random.default_rng(0).random((16, 16, 1))
    phases = {"measured": np.full((16, 16, 1), 3.0), "generated": np.zeros((16, 16, 1))}
    answers = {"measured": np.full((4, 4, 1), 0.9), "generated": np.full((4, 4, 1), 0.2)}
    figure = judged_pairs(bf, phases, answers, 0.7)
    panels = np.array(figure.axes[:6]).reshape(2, 3)
    assert len({panel.images[0].get_clim() for panel in panels[:, 1]}) == 1
    assert {panel.images[0].get_clim() for panel in panels[:, 2]} == {(0.0, 1.0)}
    assert [panel.get_xlabel() for panel in panels[:, 2]] == ["mean 0.90", "mean 0.20"]
    for panel in panels[:, 0]:
        np.testing.assert_array_equal(panel.images[0].get_array(), bf[..., 0])
    with pytest.raises(ValueError, match="expected the same"):
        judged_pairs(bf, phases, {"measured": answers["measured"]}, 0.7)


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


def test_judges_beside_the_true_share():
    before = pd.Series({"batch_cnn": 0.15})
    after = pd.Series({"batch_cnn": 1.0, "batch_mlp_1": 0.97})
    figure = called_first_batch({"before": before, "after": after}, 0.143, "Batch1")
    panel = figure.axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in panel.patches], [15, 0, 100, 97])
    assert [text.get_text() for text in panel.texts] == [" 15 %", "", " 100 %", " 97 %"]
    assert panel.lines[0].get_xdata()[0] == pytest.approx(14.3)
    assert "Batch1" in panel.get_xlabel()
