"""Figures show what they claim to show."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from cytomad_lib.views import plots

PIXEL = 0.7
RNG = np.random.default_rng(0)


def labels(n=84):
    return pd.DataFrame(
        {
            "batch": pd.Categorical([f"Batch{1 + k % 7}" for k in range(n)]),
            "class_name": pd.Categorical([f"line{k % 4}" for k in range(n)]),
        }
    )


def grid(**options):
    phase = np.abs(RNG.normal(size=(3, 40, 40)))
    columns = {"Brightfield": 9 + phase, "Predicted": phase[..., None], "Measured QPI": 2 * phase}
    return plots.image_grid(columns, PIXEL, **options)


def image_panels(figure):
    return [axes for axes in figure.axes if axes.images]


def colour_bar_labels(figure):
    return {axes.get_ylabel() for axes in figure.axes if not axes.images} - {""}


def test_grid_has_one_phase_scale_and_grey_brightfield():
    panels = image_panels(grid())
    by_map = {name: [] for name in ("gray", plots.PHASE_MAP)}
    for axes in panels:
        by_map[axes.images[0].get_cmap().name].append(axes.images[0].get_clim())
    assert len(by_map["gray"]) == 3
    assert len(by_map[plots.PHASE_MAP]) == 6
    assert len(set(by_map[plots.PHASE_MAP])) == 1
    assert set(by_map["gray"]) != set(by_map[plots.PHASE_MAP])


def test_grid_scale_can_be_fixed():
    clims = {axes.images[0].get_clim() for axes in image_panels(grid(phase_limits=(0, 4)))}
    assert (0, 4) in clims


def test_grid_scale_bar_is_10_micrometres():
    axes = image_panels(grid())[0]
    assert axes.images[0].get_extent() == pytest.approx([0, 40 * PIXEL, 40 * PIXEL, 0])
    (bar,) = axes.patches
    assert bar.get_width() == 10
    assert bar.get_x() > 0 and bar.get_x() + 10 < 40 * PIXEL
    assert axes.texts[0].get_text() == "10 µm"


def test_grid_error_column_is_the_difference_centred_at_zero():
    figure = grid(error_of=("Predicted", "Measured QPI"), row_labels=["H69, Batch1"] * 3)
    panels = image_panels(figure)
    first, last = panels[:4], panels[3]
    drawn = [np.asarray(axes.images[0].get_array()) for axes in first]
    np.testing.assert_allclose(drawn[3], drawn[1] - drawn[2])
    low, high = last.images[0].get_clim()
    assert low == -high
    assert colour_bar_labels(figure) == {"phase (rad)", "difference (rad)"}
    assert panels[0].get_ylabel() == "H69\nBatch1"


def test_what_is_no_phase_is_not_called_one():
    images = np.random.default_rng(0).random((1, 8, 8))
    figure = plots.image_grid(
        {"a": images, "b": images / 2}, PIXEL, error_of=("a", "b"), quantity="DAPI"
    )
    assert colour_bar_labels(figure) == {"DAPI", "difference"}


def test_grid_errors():
    with pytest.raises(ValueError, match="same cells"):
        plots.image_grid({"a": np.zeros((2, 4, 4)), "b": np.zeros((3, 4, 4))}, PIXEL)
    with pytest.raises(ValueError, match="Truth"):
        grid(error_of=("Predicted", "Truth"))
    with pytest.raises(ValueError, match="2 row labels for 3"):
        grid(row_labels=["a", "b"])


def test_losses_share_a_panel_and_mark_the_best_epoch():
    history = {"loss": [50, 5, 1], "val_loss": [60, 4, 9], "mae": [0.3, 0.2, 0.2]}
    figure = plots.loss_curves(history, title="Pretraining")
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
        plots.loss_curves({"loss": [1]}, names=["psnr"])
    with pytest.raises(ValueError, match="0 epochs"):
        plots.loss_curves({"loss": []})


def test_embedding_draws_every_cell_twice():
    table = labels()
    points = RNG.normal(size=(len(table), 2))
    for axes in plots.embedding(points, table).axes:
        drawn = np.vstack([part.get_offsets() for part in axes.collections])
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(points, axis=0))


def test_embedding_keeps_colours_when_categories_are_missing():
    table = labels()
    everything = plots.embedding(np.zeros((len(table), 2)), table)
    part = table[table["batch"] == "Batch5"]
    some = plots.embedding(np.zeros((len(part), 2)), part)
    colours = [
        {line.get_label(): line.get_color() for line in figure.axes[0].get_legend().get_lines()}
        for figure in (everything, some)
    ]
    assert len(set(colours[0].values())) == 7
    assert colours[1] == {"Batch5": colours[0]["Batch5"]}


def test_embedding_of_other_cells_is_an_error():
    with pytest.raises(ValueError, match=r"\(3, 2\) for 84"):
        plots.embedding(np.zeros((3, 2)), labels())


def test_palettes_are_distinct():
    both = plots.BATCH_COLOURS + plots.CLASS_COLOURS
    assert len(set(both)) == 14
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in both])
    for palette in (rgb[:7], rgb[7:]):
        distance = np.linalg.norm(palette[:, None] - palette, axis=2)[np.triu_indices(7, 1)]
        assert distance.min() > 0.2
    with pytest.raises(ValueError, match="8 categories"):
        plots.category_colours(list("abcdefgh"), plots.BATCH_COLOURS)


def test_confusion_rows_add_up_to_100_percent():
    names = ["H69", "H358", "H520"]
    table = pd.DataFrame([[8, 2, 0], [0, 20, 0], [0, 0, 0]], index=names, columns=names)
    axes = plots.confusion_matrix(table, "Class").axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[80, 20, 0], [0, 100, 0], [0, 0, 0]])
    assert axes.texts[0].get_text() == "80"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "H69 (10)",
        "H358 (20)",
        "H520 (0)",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true (cells)")


def test_confusions_side_by_side_share_the_scale():
    table = pd.DataFrame(np.eye(2, dtype=int), index=["a", "b"], columns=["a", "b"])
    figure = plots.confusion_matrices({"one": table, "two": 5 * table})
    panels = image_panels(figure)
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    assert {axes.images[0].get_clim() for axes in panels} == {(0, 100)}


def score_rows():
    rows = [
        ("pix2pix", "batch within class", 0.9, 1 / 3, 0.37),
        ("pix2pix", "batch within class", 0.8, 1 / 3, 0.37),
        ("removed", "batch within class", 0.5, 1 / 3, 0.37),
        ("pix2pix", "class", 0.6, 1 / 7, 0.17),
    ]
    return pd.DataFrame(rows, columns=["method", "measure", "accuracy", "chance", "null_95"])


def test_score_bars_show_mean_chance_and_null():
    batch, class_ = plots.score_bars(score_rows()).axes
    bars = [patch.get_height() for patch in batch.patches if patch.get_y() == 0]
    assert bars == pytest.approx([0.85, 0.5])
    boxes = [p for p in batch.patches if p.get_y() > 0]
    assert [(box.get_y(), box.get_y() + box.get_height()) for box in boxes] == [
        pytest.approx((1 / 3, 0.37))
    ] * 2
    assert 1 / 7 in [line.get_ydata()[0] for line in class_.get_lines()]
    assert "lower is better" in batch.get_title()
    assert "higher is better" in class_.get_title()
    assert "accuracy" in batch.get_ylabel()


def test_score_rows_show_the_same_as_bars_lying_down():
    batch, class_ = plots.score_rows(score_rows(), faded=["removed"]).axes
    bars = [patch.get_width() for patch in batch.patches if patch.get_x() == 0]
    assert bars == pytest.approx([0.85, 0.5])
    boxes = [p for p in batch.patches if p.get_x() > 0]
    assert [(box.get_x(), box.get_x() + box.get_width()) for box in boxes] == [
        pytest.approx((1 / 3, 0.37))
    ] * 2
    assert 1 / 7 in [line.get_xdata()[0] for line in class_.get_lines()]
    assert batch.get_ylim()[0] > batch.get_ylim()[1]  # the first method is on top
    first, second = (patch.get_facecolor() for patch in batch.patches if patch.get_x() == 0)
    assert first != second


def test_many_measures_of_scores_are_put_into_two_rows():
    rows = pd.concat([score_rows(), score_rows().assign(measure=lambda t: t["measure"] + " again")])
    axes = plots.score_bars(rows).axes
    assert len(axes) == 4
    assert len({round(panel.get_subplotspec().rowspan.start) for panel in axes}) == 2


def test_figures_do_not_belong_to_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure = plots.loss_curves({"loss": [2, 1]})
    assert pyplot.get_fignums() == before
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    figure = plots.loss_curves({"loss": [2, 1]})
    path = tmp_path / "new" / "loss.png"
    path.parent.mkdir()
    path.write_text("old")
    assert plots.save_figure(figure, path) == path
    width = matplotlib.image.imread(path).shape[1]
    assert width == pytest.approx(150 * figure.get_figwidth(), abs=1)
    assert list(path.parent.iterdir()) == [path]


def test_failed_saving_keeps_the_old_file(tmp_path):
    class Broken:
        def savefig(self, path, **options):
            path.write_text("half")
            raise OSError("disk full")

    path = tmp_path / "loss.png"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(Broken(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="loss.docx"):
        plots.save_figure(Broken(), tmp_path / "loss.docx")


def correlations():
    return pd.DataFrame(
        [[0.2, -0.9], [0.6, 0.1], [np.nan, np.nan], [-0.8, 0.3]],
        index=["mass", "small", "constant", "large"],
        columns=["area_um2", "dry_mass_pg"],
    )


def test_correlation_map_orders_features_by_the_measure_they_follow():
    figure = plots.correlation_map(correlations(), "Bottleneck")
    (panel,) = image_panels(figure)
    names = [tick.get_text() for tick in panel.get_yticklabels()]
    assert names == ["large", "small", "mass", "constant"]
    np.testing.assert_array_equal(
        np.ma.filled(panel.images[0].get_array(), np.nan), correlations().loc[names]
    )
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["area_um2", "dry_mass_pg"]
    boxes = [(box.get_x() + 0.5, box.get_y() + 0.5) for box in panel.patches]
    assert boxes == [(0, 0), (0, 1), (1, 2)]  # the constant feature follows nothing
    assert panel.get_title() == "Bottleneck"
    assert panel.get_xlabel() and panel.get_ylabel()


def test_correlation_map_is_centred_and_shows_missing_values_in_grey():
    figure = plots.correlation_map(correlations())
    (image,) = image_panels(figure)[0].images
    assert image.get_clim() == (-1, 1)
    colours = image.to_rgba(np.ma.masked_invalid([0.0, 0.9, -0.9, np.nan]))
    assert colours[0].min() > 0.95  # no correlation is white
    assert colours[1][0] > colours[1][2] and colours[2][0] < colours[2][2]  # red up, blue down
    np.testing.assert_allclose(colours[3], [0.8, 0.8, 0.8, 1])
    assert colour_bar_labels(figure) == {"correlation"}


def test_correlation_map_of_many_features_counts_them_instead_of_naming():
    table = pd.DataFrame(RNG.uniform(-1, 1, (512, 3)), columns=list("abc"))
    panel = image_panels(plots.correlation_map(table))[0]
    assert len(panel.get_yticks()) == 0
    assert "512" in panel.get_ylabel()


def test_correlation_map_of_anything_else_is_an_error():
    with pytest.raises(ValueError, match="outside -1 to 1"):
        plots.correlation_map(3 * correlations())
    with pytest.raises(ValueError, match="0 features"):
        plots.correlation_map(correlations().iloc[:0])


def distances():
    rows = [
        (drug, batch, dose, level, level * slope, level * slope - 0.5, level * slope + 0.5, 0.7)
        for drug, batch, slope in (
            ("Docetaxel", "B1", 1.0),
            ("Docetaxel", "B2", 0.5),
            ("Afatinib", "B3", 0.8),
        )
        for level, dose in enumerate(["DMSO", *(f"{drug[0]}{k}" for k in range(1, 6))])
    ]
    names = ["class_name", "batch", "dose", "level", "distance", "low", "high", "null_95"]
    return pd.DataFrame(rows, columns=names)


def test_dose_response_has_a_panel_per_drug_and_a_line_with_band_and_null_per_batch():
    figure = plots.dose_response(distances(), "Bottleneck")
    assert [panel.get_title() for panel in figure.axes] == ["Docetaxel", "Afatinib"]
    first, second = figure.axes
    assert [tick.get_text() for tick in second.get_xticklabels()] == ["DMSO"] + [
        f"A{k}" for k in range(1, 6)
    ]
    lines = {line.get_label(): line for line in first.lines}
    np.testing.assert_allclose(lines["B1"].get_ydata(), range(6))
    np.testing.assert_allclose(lines["B2"].get_ydata(), 0.5 * np.arange(6))
    assert len(first.collections) == 2 and len(second.collections) == 1
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (-0.5, 5.5)
    nulls = [line for line in first.lines if line.get_linestyle() == ":"]
    assert [set(line.get_ydata()) for line in nulls] == [{0.7}, {0.7}]
    assert first.get_ylim() == second.get_ylim()
    assert figure.get_suptitle() == "Bottleneck"


def test_dose_response_gives_each_batch_its_own_colour_and_marker():
    looks = {
        line.get_label(): (line.get_color(), line.get_marker())
        for panel in plots.dose_response(distances()).axes
        for line in panel.lines
        if line.get_label().startswith("B")
    }
    assert list(looks) == ["B1", "B2", "B3"]
    colours, markers = zip(*looks.values(), strict=True)
    assert colours == plots.BATCH_COLOURS[:3]
    assert len(set(markers)) == 3


def test_dose_response_of_anything_else_is_an_error():
    with pytest.raises(ValueError, match="null_95"):
        plots.dose_response(distances().drop(columns="null_95"))
    with pytest.raises(ValueError, match="0 rows"):
        plots.dose_response(distances().iloc[:0])
