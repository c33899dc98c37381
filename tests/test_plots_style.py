"""Colours, resolution and files of all figures."""

import base64
import io
import struct

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.color import rgb2lab

from cytomad_lib import networks, plots
from cytomad_lib.data.errors import WriteError
from cytomad_lib.evaluation.dissection import block_table
from cytomad_lib.plots import style

PALETTES = (style.BATCH_COLOURS, style.CLASS_COLOURS, style.METHOD_COLOURS)
# Colours as people without one kind of cone see them: Machado, Oliveira & Fernandes (2009), "A
# physiologically-based model for simulation of color vision deficiency", for linear RGB.
COLOUR_BLIND = {
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear(colours):
    """Return sRGB colours as linear RGB, (colours, 3)."""
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def srgb(rgb):
    rgb = np.clip(rgb, 0, 1)
    return np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("palette", [*PALETTES, [style.GREY]])
def test_colours_have_a_contrast_of_three_with_white(palette):
    luminance = linear(palette) @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05)).min() >= 3


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_colour_blind_readers_can_tell_the_colours_apart(palette, kind):
    lab = rgb2lab(srgb(linear(palette) @ np.transpose(COLOUR_BLIND[kind])))
    distance = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(lab), 1)]
    assert distance.min() > 15  # 2.3 is what people just notice


def test_palettes_are_distinct():
    both = style.BATCH_COLOURS + style.CLASS_COLOURS
    assert len(set(both)) == 14
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in both])
    for palette in (rgb[:7], rgb[7:]):
        distance = np.linalg.norm(palette[:, None] - palette, axis=2)[np.triu_indices(7, 1)]
        assert distance.min() > 0.2
    with pytest.raises(ValueError, match="8 categories"):
        style.category_looks(list("abcdefgh"), style.BATCH_COLOURS)


@pytest.mark.parametrize(("level", "colour"), [(0.0, "white"), (1.0, "black")])
def test_the_scale_bar_stands_out(level, colour):
    panel = style.new_figure(3, 3).subplots()
    style.scale_bar(style.draw_image(panel, np.full((32, 32), level), 1, "gray", (0, 1)))
    assert panel.texts[0].get_color() == colour
    assert panel.patches[0].get_bbox().x1 == panel.texts[0].get_position()[0] < 32


def single_panels():
    """Return a call with `ax` of each figure that has one panel."""
    labels = pd.DataFrame({"batch": ["B1", "B1", "B2"], "class_name": ["a", "b", "b"]})
    labels = labels.astype("category")
    blocks = block_table(networks.build_generator(32, 2))
    loss = plots.loss_table({"mae": 0.2}, {"mae": 100})
    return {
        "group_counts": (labels,),
        "points_by_batch": ([1.0, 2.0, 3.0], labels["batch"], "error (%)"),
        "unet_diagram": (blocks,),
        "parameter_bars": (blocks,),
        "path_bars": ({"bottleneck": 0.1}, ("another cell", 0.2)),
        "feature_strips": (np.eye(3), ["a", "b", "c"]),
        "feature_subsets": ([[0, 1], [2, 3]], 4),
        "loss_parts": ({"before": loss},),
        "cross_entropy_curve": ({"undecided": 0.5},),
        "first_batch_share": ({"after": pd.Series({"batch_cnn": 0.9})}, 0.2),
        "correlation_map": (pd.DataFrame([[0.5, -0.5]], columns=["area_um2", "dry_mass_pg"]),),
    }


@pytest.mark.parametrize(("name", "inputs"), single_panels().items())
def test_a_single_panel_can_be_drawn_into_axes_of_a_reader(name, inputs):
    figure = style.new_figure(12, 5)
    left, right = figure.subplots(1, 2)
    assert getattr(plots, name)(*inputs, ax=right) is figure
    figure.savefig(io.BytesIO())
    assert not left.has_data()
    assert right.collections or right.patches or right.lines


def test_seaborn_leaves_the_style_of_matplotlib_alone():
    before = matplotlib.rcParams.copy()
    plots.cross_entropy_curve({"undecided": 0.5})
    plots.first_batch_share({"after": pd.Series({"batch_cnn": 0.9})}, 0.2)
    assert matplotlib.rcParams == before
    assert before["axes.facecolor"] == "white" and not before["axes.grid"]


def test_a_notebook_shows_150_dpi_at_the_size_in_inches():
    data, metadata = style.new_figure(4, 3)._repr_mimebundle_()
    width, height = struct.unpack(">II", base64.b64decode(data["image/png"])[16:24])
    assert (width, height) == (600, 450)
    assert metadata["image/png"]["width"] == 4 * 96


def test_figures_do_not_belong_to_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure = style.new_figure(4, 3)
    assert pyplot.get_fignums() == before
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    figure = style.new_figure(4, 3)
    path = tmp_path / "new" / "loss.png"
    path.parent.mkdir()
    path.write_text("old")
    assert style.save_figure(figure, path) == path
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
    with pytest.raises(WriteError, match="disk full"):
        style.save_figure(Broken(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="loss.docx"):
        style.save_figure(Broken(), tmp_path / "loss.docx")


def test_a_picture_of_several_colour_maps_keeps_its_colours():
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).cumsum(axis=1) / 8
    figure = plots.image_grid(
        {"Brightfield": images, "Phase": images, "Difference": images},
        0.7,
        brightfield=("Brightfield",),
        difference=("Difference",),
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    exact, shown = (
        np.asarray(Image.open(file).convert("RGB"), int)
        for file in (drawn, io.BytesIO(style.as_png(figure)))
    )
    assert np.abs(exact - shown).max() <= 8
