"""Cells: reproducible one by one, inside the field, and different from line to line."""

import numpy as np
import pytest

from cytomad_lib.data.layouts import LUNG
from cytomad_lib.simulation.morphology import (
    LUNG_LINES,
    OUTLINE_MODES,
    cell_generators,
    draw_cells,
    find_line,
    optical_path,
    spheroid_thickness,
)
from cytomad_lib.simulation.optics import bin_pixels, phase_of_path

PIXEL = 45 / 128


def make(line, cells, seed=3):
    return draw_cells(LUNG_LINES[line], cell_generators(seed, "shape", line, cells))


@pytest.fixture(scope="module")
def phases():
    return {name: phase_of_path(optical_path(make(name, range(40)), 128)) for name in LUNG_LINES}


def test_every_line_of_the_layout_is_known():
    assert set(LUNG_LINES) == set(LUNG.classes)


def test_lines_differ_in_size_in_the_order_of_the_table(phases):
    area = np.array([(p > 0).sum(axis=(1, 2)).mean() for p in phases.values()]) * PIXEL**2
    diameter = np.sqrt(4 * area / np.pi)
    asked = np.array([line.diameter_um for line in LUNG_LINES.values()])
    assert np.all(np.diff(asked) > 0)
    assert np.all(np.diff(diameter) > 0)
    np.testing.assert_allclose(diameter, asked, rtol=0.05)


def test_peak_phases_are_those_of_suspended_cells(phases):
    peaks = np.array([p.max(axis=(1, 2)).mean() for p in phases.values()])
    assert peaks.min() > 1.8
    assert peaks.max() < 4.0


def test_cells_lie_well_inside_the_field(phases):
    border = 12  # about 4 um
    for phase in phases.values():
        inside = phase[:, border:-border, border:-border]
        assert inside.sum() == pytest.approx(phase.sum(), rel=1e-12)


def test_cells_are_slightly_off_centre():
    cells = make("H520", range(200))
    assert 0.3 < cells.x.std() < 1.0
    assert np.hypot(cells.x, cells.y).max() < 3.0


def test_a_cell_does_not_depend_on_its_neighbours():
    many = optical_path(make("H358", range(10)), 128)
    few = optical_path(make("H358", [7, 2]), 128)
    np.testing.assert_allclose(few, many[[7, 2]], atol=1e-13)


def test_cells_differ_from_each_other_and_from_seed_to_seed():
    cells = make("H69", range(50))
    assert len(set(cells.diameter)) == 50
    assert not np.any(np.isin(make("H69", range(50), seed=4).diameter, cells.diameter))


def test_streams_are_separate_per_purpose_and_name():
    first = {
        (purpose, name, cell): cell_generators(1, purpose, name, [cell])[0].random()
        for purpose in ("shape", "noise")
        for name in ("Batch1/H69/Train", "Batch1/H69/Test")
        for cell in range(3)
    }
    assert len(set(first.values())) == len(first)


def test_streams_stay_what_they_were():
    """The committed dataset rests on these numbers."""
    (stream,) = cell_generators(26, "shape", "Batch1/H69/Train", [5])
    words = stream.bit_generator.random_raw(2)
    assert words.tolist() == [10060625489982149200, 5519235382892186543]


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed is"):
        cell_generators(seed, "shape", "x", [0])


def test_unknown_line():
    with pytest.raises(ValueError, match="'A549'.*H358"):
        find_line("A549")


def test_ellipse_has_the_asked_aspect_direction_and_area():
    axis = (np.arange(400) + 0.5) * 0.1 - 20
    thickness = spheroid_thickness(
        axis[None, None, :],
        axis[None, :, None],
        diameter=np.array([12.0]),
        aspect=np.array([1.5]),
        angle=np.array([np.pi / 2]),
        outline=np.zeros((1, len(OUTLINE_MODES)), complex),
        flattening=np.array([0.9]),
    )[0]
    inside = thickness > 0
    height, width = np.ptp(axis[inside.any(axis=1)]), np.ptp(axis[inside.any(axis=0)])
    assert height / width == pytest.approx(1.5, rel=0.03)
    assert inside.sum() * 0.01 == pytest.approx(np.pi * 36, rel=0.01)
    assert thickness.max() == pytest.approx(0.9 * 12, rel=0.001)
    # Volume of an ellipsoid: 4/3 pi times the product of the half axes.
    assert thickness.sum() * 0.01 == pytest.approx(4 / 3 * np.pi * 36 * 0.5 * 0.9 * 12, rel=0.005)


def test_outline_mode_makes_lobes():
    outline = np.zeros((1, len(OUTLINE_MODES)), complex)
    outline[0, 1] = 0.2  # OUTLINE_MODES[1] is 3: three lobes, one along +x
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    radius = np.linspace(3, 8, 501)
    thickness = spheroid_thickness(
        (radius[:, None] * np.cos(angle))[None],
        (radius[:, None] * np.sin(angle))[None],
        diameter=np.array([10.0]),
        aspect=np.ones(1),
        angle=np.zeros(1),
        outline=outline,
        flattening=np.ones(1),
    )[0]
    edge = radius[(thickness > 0).sum(axis=0) - 1]
    np.testing.assert_allclose(edge, 5 * (1 + 0.2 * np.cos(3 * angle)), atol=0.02)


def test_the_nucleus_stays_in_the_cell_and_adds_phase():
    cells = make("H1975", range(100))
    away = np.hypot(cells.nucleus_x, cells.nucleus_y) + 0.5 * cells.nucleus_diameter
    assert np.all(away <= 0.5 * cells.diameter)
    assert cells.nucleus_delta_n.min() >= 0.004
    assert cells.nucleus_delta_n.max() <= 0.010


def test_more_granules_make_more_detail():
    count = {
        name: (make(name, range(80)).blob_opl[:, 3:] > 0).sum(axis=1).mean()
        for name in ("H69", "H358")
    }
    for name, found in count.items():
        assert found == pytest.approx(LUNG_LINES[name].granules, rel=0.15)


def test_a_finer_grid_shows_the_same_cell():
    cells = make("H2170", range(3))
    fine = bin_pixels(optical_path(cells, 512), 4)
    coarse = optical_path(cells, 128)
    # Binning smooths what one sample per pixel does not; the texture's frame shifts by part of
    # a pixel. The cell as a whole is the same.
    np.testing.assert_allclose(fine.sum(axis=(1, 2)), coarse.sum(axis=(1, 2)), rtol=0.01)
    assert np.abs(fine - coarse).max() < 0.1 * coarse.max()
