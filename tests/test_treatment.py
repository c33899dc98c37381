"""Treated cells: each drug does what its mechanism says, more of it at every higher dose."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import ndimage

from cytomad_lib.data.layouts import DRUG
from cytomad_lib.evaluation.biophysics import measure_cells
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.simulation.morphology import (
    LUNG_LINES,
    cell_generators,
    draw_cells,
    optical_path,
)
from cytomad_lib.simulation.treatment import (
    DRUGS,
    MAX_LOBES,
    find_treatment,
    response_strength,
    treat_cells,
)

N = 80
GRID = 128
PIXEL = 45 / GRID
LEVELS = range(1, 6)


def untreated(n=N):
    return draw_cells(LUNG_LINES["H2170"], cell_generators(3, "shape", "test", range(n)))


def treat(drug, level, n=N):
    """The same cells and the same response numbers at every dose."""
    streams = cell_generators(3, "response", "test", range(n))
    return treat_cells(untreated(n), DRUGS[drug] if isinstance(drug, str) else drug, level, streams)


def strengths(drug, level, n=N):
    streams = cell_generators(3, "response", "test", range(n))
    normal = np.array([g.standard_normal() for g in streams])
    return response_strength(DRUGS[drug], level, np.array([g.random() for g in streams]), normal)


def outline_areas(cells):
    return (optical_path(cells, GRID) > 0).sum(axis=(1, 2)) * PIXEL**2


def all_respond(drug):
    """The drug at full strength in every cell, to see its mechanism alone."""
    return replace(DRUGS[drug], responders=(1.0,) * 5, strength=(1.0,) * 5)


def same(one, other):
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def test_the_drugs_are_those_of_the_layout():
    assert ("DMSO", *DRUGS) == DRUG.classes


def test_untreated_cells_are_those_of_the_line():
    assert find_treatment("DMSO", "Control").line is LUNG_LINES["H2170"]
    assert find_treatment("DMSO", "Control").drug is None
    assert same(treat("Docetaxel", 0), untreated())
    control = simulate_cells("DMSO", 3, "B1", seed=4, dose="Control", twins=True)
    line = simulate_cells("H2170", 3, "B1", seed=4, twins=True)
    assert np.array_equal(control.truth, line.truth)
    assert np.array_equal(control.brightfield, line.brightfield)


@pytest.mark.parametrize("drug", DRUGS)
def test_responders_grow_with_the_dose_and_stay_responders(drug):
    assert len(DRUGS[drug].responders) == len(DRUGS[drug].strength) == 5
    by_level = np.array([strengths(drug, level, 400) for level in LEVELS])
    assert np.all(np.diff(by_level, axis=0) >= 0)
    fraction = (by_level > 0).mean(axis=1)
    assert np.all(np.diff(fraction) > 0.05)
    np.testing.assert_allclose(fraction, DRUGS[drug].responders, atol=0.08)
    assert fraction[0] < 0.35 and fraction[-1] < 1  # a partial response, at every dose
    responding = by_level[-1][by_level[-1] > 0]
    assert responding.std() / responding.mean() > 0.15  # cells do not respond alike


@pytest.mark.parametrize("drug", DRUGS)
def test_cells_that_do_not_respond_are_unchanged(drug):
    spared = strengths(drug, 3) == 0
    assert 0 < spared.sum() < N
    path, before = optical_path(treat(drug, 3), GRID), optical_path(untreated(), GRID)
    np.testing.assert_allclose(path[spared], before[spared], atol=1e-12)
    changed = np.abs(path - before).max(axis=(1, 2))
    assert changed[~spared].min() > 0.01


@pytest.mark.parametrize("drug", DRUGS)
def test_a_treated_cell_does_not_depend_on_its_neighbours(drug):
    cells = [11, 4]
    few = treat_cells(
        draw_cells(LUNG_LINES["H2170"], cell_generators(3, "shape", "test", cells)),
        DRUGS[drug],
        5,
        cell_generators(3, "response", "test", cells),
    )
    many = optical_path(treat(drug, 5), GRID)[cells]
    np.testing.assert_allclose(optical_path(few, GRID), many, atol=1e-13)


@pytest.mark.parametrize("drug", DRUGS)
def test_treated_cells_lie_well_inside_the_field(drug):
    path = optical_path(treat(drug, 5, 300), 64)
    assert path[:, 6:-6, 6:-6].sum() == pytest.approx(path.sum(), rel=1e-12)


def test_gemcitabine_grows_the_same_cells_and_their_nuclei():
    areas = np.array([outline_areas(treat("Gemcitabine", level)) for level in range(6)])
    assert np.all(np.diff(areas, axis=0) >= -(PIXEL**2))  # every cell, within a pixel
    assert np.all(np.diff(areas.mean(axis=1)) > 0)
    assert areas[5].mean() > 1.25 * areas[0].mean()
    mass = [optical_path(treat("Gemcitabine", level), 64).sum() for level in range(6)]
    assert np.all(np.diff(mass) > 0)
    assert mass[5] > 1.4 * mass[0]
    full = treat(all_respond("Gemcitabine"), 5)
    before = untreated()
    assert np.all(full.nucleus_diameter > before.nucleus_diameter)
    assert np.all(full.nucleus_diameter / full.diameter > before.nucleus_diameter / before.diameter)


def test_afatinib_shrinks_and_condenses_the_same_cells():
    before, full = untreated(), treat(all_respond("Afatinib"), 5)
    bodies = replace(full, bleb_diameter=np.zeros_like(full.bleb_diameter))
    assert np.all(outline_areas(bodies) < 0.9 * outline_areas(before))
    path, path_before = optical_path(full, GRID), optical_path(before, GRID)
    assert np.all(path.sum(axis=(1, 2)) < path_before.sum(axis=(1, 2)))  # less dry mass …
    # … in even less volume. All phase of a drug's cell comes from index times thickness.
    density = [
        optical_path(cells, GRID).sum(axis=(1, 2)) / cells.diameter**3 for cells in (before, bodies)
    ]
    assert np.all(density[1] > 1.1 * density[0])


def test_afatinib_blebs_stick_out_of_the_outline():
    full = treat(all_respond("Afatinib"), 5)
    assert np.all((full.bleb_diameter > 0).sum(axis=1) >= 2)
    measured = {}
    for name, cells in (("blebs", full), ("none", untreated())):
        path = optical_path(cells, GRID)
        measured[name] = measure_cells(path, PIXEL, mask=path > 0)
    assert measured["blebs"].circularity.mean() < measured["none"].circularity.mean() - 0.08
    bodies = replace(full, bleb_diameter=np.zeros_like(full.bleb_diameter))
    out = (optical_path(full, GRID) > 0) & ~(optical_path(bodies, GRID) > 0)
    assert np.all(out.any(axis=(1, 2)))


def nuclei(cells):
    """Map of the nuclear thickness alone, where the cell itself has no weight."""
    bare = replace(
        cells,
        delta_n=np.zeros_like(cells.delta_n),
        nucleus_delta_n=np.ones_like(cells.nucleus_delta_n),
        texture_strength=np.zeros_like(cells.texture_strength),
        blob_opl=np.zeros_like(cells.blob_opl),
    )
    return optical_path(bare, 256)


def lobes_per_cell(maps):
    """Peaks of the smoothed nuclear thickness, at least 3 um apart."""
    smooth = ndimage.gaussian_filter(maps, (0, 3, 3))
    peaks = (smooth == ndimage.maximum_filter(smooth, (1, 17, 17))) & (smooth > 1.0)
    return peaks.sum(axis=(1, 2))


def test_docetaxel_makes_lobed_nuclei():
    before, after = nuclei(untreated(30)), nuclei(treat(all_respond("Docetaxel"), 5, 30))
    assert lobes_per_cell(before).mean() < 1.2
    assert lobes_per_cell(after).mean() > 2
    solidity = [(m > 0).sum(axis=(1, 2)) / hull_area(m > 0) for m in (before, after)]
    assert solidity[1].mean() < solidity[0].mean() - 0.05


def hull_area(masks):
    """Area of the convex hulls, as pixels that lie between others in every one of 16 directions."""
    size = masks.shape[-1]
    y, x = np.mgrid[:size, :size]
    inside = np.ones(masks.shape, bool)
    for turn in np.linspace(0, np.pi, 16, endpoint=False):
        along = x * np.cos(turn) + y * np.sin(turn)
        far = np.where(masks, along, np.nan)
        low, high = np.nanmin(far, axis=(1, 2)), np.nanmax(far, axis=(1, 2))
        inside &= (along >= low[:, None, None]) & (along <= high[:, None, None])
    return inside.sum(axis=(1, 2))


def test_docetaxel_rounds_and_enlarges_arrested_cells():
    before, full = untreated(), treat(all_respond("Docetaxel"), 5)
    assert np.all(full.diameter > before.diameter)
    assert np.all(full.aspect - 1 < 0.6 * (before.aspect - 1))
    lobes = (full.lobe_diameter[:, :MAX_LOBES] > 0).sum(axis=1)
    assert set(lobes) == {2, 3}
    arrested = [(treat("Docetaxel", k, 200).lobe_diameter > 1).any(axis=1).mean() for k in LEVELS]
    assert np.all(np.diff(arrested) > 0)


def test_lobes_point_in_all_directions():
    cells = treat(all_respond("Docetaxel"), 5, 300)
    for count in (2, 3):
        chosen = (cells.lobe_diameter[:, :MAX_LOBES] > 0).sum(axis=1) == count
        x = (cells.lobe_x[chosen, :1] - cells.nucleus_x[chosen, None]).ravel()
        y = (cells.lobe_y[chosen, :1] - cells.nucleus_y[chosen, None]).ravel()
        assert np.hypot(x.mean(), y.mean()) < 0.25 * np.hypot(x, y).mean()


def test_twins_are_the_same_cells_and_other_groups_are_not():
    low, high = (
        simulate_cells("Gemcitabine", 20, "B5", seed=1, image_size=32, dose=dose, twins=True)
        for dose in ("G1", "G5")
    )
    assert np.array_equal(low.settings, high.settings)
    assert np.all(high.truth.sum(axis=(1, 2)) >= low.truth.sum(axis=(1, 2)) * 0.999)
    apart = [
        simulate_cells("Gemcitabine", 20, "B5", seed=1, image_size=32, dose=dose).settings
        for dose in ("G1", "G5")
    ]
    assert not np.any(apart[0].gain.to_numpy() == apart[1].gain.to_numpy())


def test_treatment_is_in_the_truth_and_the_batch_is_not():
    same_cells = [
        simulate_cells("Docetaxel", 3, batch, seed=2, dose="D5", seen_in="B1")
        for batch in ("B1", "B2")
    ]
    assert np.array_equal(same_cells[0].truth, same_cells[1].truth)
    assert np.abs(same_cells[0].qpi - same_cells[1].qpi).max() > 0.1


@pytest.mark.parametrize(
    ("class_name", "dose", "message"),
    [
        ("Docetaxel", "G3", "Docetaxel at dose G3.*Docetaxel D3"),
        ("Docetaxel", None, "Docetaxel without a dose.*Docetaxel D1"),
        ("DMSO", None, "DMSO without a dose.*DMSO Control"),
        ("H69", "D1", "H69 at dose D1"),
        ("Aspirin", "D1", "Aspirin at dose D1"),
        ("Aspirin", None, "Aspirin.*H2170"),
    ],
)
def test_unknown_class_or_dose(class_name, dose, message):
    with pytest.raises(ValueError, match=message):
        find_treatment(class_name, dose)


def test_unknown_level():
    with pytest.raises(ValueError, match="level is 6"):
        treat("Docetaxel", 6)
