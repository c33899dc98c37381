"""Distances and orders of doses: right on known shifts, silent on noise."""

import numpy as np
import pandas as pd
import pytest

from cytomad_lib.data.layouts import DRUG
from cytomad_lib.evaluation.biophysics import measure_cells
from cytomad_lib.evaluation.dose_cells import MAX_COMPONENTS
from cytomad_lib.evaluation.dose_response import dose_distances, dose_order, dose_positions
from cytomad_lib.simulation.acquisition import simulate_cells

FEW = {"n_bootstrap": 60}
QUICK = {"n_bootstrap": 60, "n_permutations": 60, "n_repeats": 3}


def make_labels(n=40, drugs=(("Docetaxel", ("B1", "B2")),)):
    groups = []
    for drug, batches in drugs:
        for batch in batches:
            groups.append((batch, "DMSO", "Control"))
            groups += [(batch, drug, f"{drug[0]}{level}") for level in range(1, 6)]
    rows = [group for group in groups for _ in range(n)]
    return pd.DataFrame(rows, columns=["batch", "class_name", "dose"]).astype("category")


def make_features(labels, shift=0.0, n_features=4, batch_shift=0.0, seed=0):
    """Gaussian noise; dose k shifts the first feature by k * shift, batch B2 the last one."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(labels), n_features))
    values[:, 0] += shift * levels(labels)
    values[:, -1] += batch_shift * (labels.batch == "B2")
    return values


def levels(labels):
    return labels.dose.map({d: 0 if d == "Control" else int(d[1]) for d in DRUG.doses}).astype(int)


def treated(table):
    return table[table.level > 0]


def test_distance_is_the_known_shift_in_standard_deviations():
    labels = make_labels(150)
    table = dose_distances(make_features(labels, 0.8), labels, **FEW)
    np.testing.assert_allclose(table.distance, 0.8 * table.level, atol=0.4)
    assert ((table.low <= 0.8 * table.level) & (table.high >= 0.8 * table.level)).mean() > 0.8
    assert (table.low <= table.distance).all() and (table.distance <= table.high).all()
    assert table.columns[:5].tolist() == ["class_name", "batch", "dose", "level", "n_cells"]
    assert table.level.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert table.dose.tolist() == ["DMSO", "D1", "D2", "D3", "D4", "D5"] * 2


def test_distance_counts_in_the_spread_along_the_shift():
    labels = make_labels(150)
    features = make_features(labels, 1.0)
    features[:, 0] *= 50  # a unit is no distance
    mixed = features @ np.random.default_rng(1).normal(size=(4, 4))
    for values in (features, mixed):
        table = dose_distances(values, labels, **FEW)
        np.testing.assert_allclose(table.distance, table.level, atol=0.7)


def test_without_an_effect_the_distance_scatters_around_zero():
    """Plugged in as they are, means of 20 cells in 10 features would lie 1.0 apart."""
    labels = make_labels(20)
    tables = [
        treated(dose_distances(make_features(labels, 0, 10, seed=seed), labels, seed=seed, **FEW))
        for seed in range(12)
    ]
    table = pd.concat(tables)
    square = np.sign(table.distance) * table.distance**2
    assert abs(square.mean()) < 0.15
    assert (table.distance < 0).mean() > 0.25
    assert ((table.low < 0) & (table.high > 0)).mean() > 0.9
    assert (table.distance > table.null_95).mean() < 0.15


def test_null_lies_under_a_real_effect():
    labels = make_labels(30)
    table = treated(dose_distances(make_features(labels, 0.6), labels, **FEW))
    assert (table.null_95 > 0).all()
    assert (table[table.level >= 4].low > table[table.level >= 4].null_95).all()


def test_the_own_control_takes_the_batch_out_and_the_pooled_does_not():
    labels = make_labels(100)
    table = dose_distances(make_features(labels, 0.5, batch_shift=5.0), labels, **FEW)
    np.testing.assert_allclose(table.distance, 0.5 * table.level, atol=0.4)
    # The other batches' untreated cells are 5 away, whatever the dose.
    pooled = np.hypot(5.0, 0.5 * table.level)
    np.testing.assert_allclose(table.distance_pooled, pooled, atol=0.7)
    untreated = table[table.level == 0]
    assert (untreated.low_pooled > 3).all() and (untreated.distance == 0).all()


def test_one_batch_has_no_others_to_pool():
    labels = make_labels(20, drugs=(("Afatinib", ("B3",)),))
    table = dose_distances(make_features(labels, 1.0), labels, **FEW)
    assert table.distance_pooled.isna().all()
    assert table.distance.notna().all()


def test_the_seed_decides_everything():
    labels = make_labels(15)
    features = make_features(labels, 0.5)
    for function, options in ((dose_distances, FEW), (dose_order, QUICK)):
        first, again, other = (function(features, labels, seed=s, **options) for s in (1, 1, 2))
        pd.testing.assert_frame_equal(first, again)
        assert not first.equals(other)


def test_known_doses_are_ordered():
    labels = make_labels(30)
    table = dose_order(make_features(labels, 0.7, batch_shift=5.0), labels, **QUICK)
    assert table.batch.tolist() == ["B1", "B2", "all"]
    assert table.n_groups.tolist() == [5, 5, 10]
    assert table.n_cells.tolist() == [150, 150, 300]
    assert (table.rho_groups > 0.85).all()
    assert (table.rho_cells > 0.5).all()
    assert (table.p_cells < 0.05).all()
    assert (table.low_groups <= table.rho_groups).all()
    overall = table[table.batch == "all"].iloc[0]
    assert overall.rho_groups > overall.null_95_groups and overall.low_cells > 0


def test_shuffled_doses_have_no_order():
    """The drug is as far from its control as before; only the doses are gone."""
    labels = make_labels(25)
    features = make_features(labels, 0.7)
    found = []
    rng = np.random.default_rng(5)
    for seed in range(12):
        mixed = labels.copy()
        for batch in ("B1", "B2"):
            own = ((labels.batch == batch) & (labels.class_name != "DMSO")).to_numpy()
            mixed.loc[own, "dose"] = rng.permutation(labels.dose[own])
        options = QUICK | {"n_bootstrap": 5}
        found.append(dose_order(features, mixed, seed=seed, **options).iloc[-1])
    found = pd.DataFrame(found)
    assert abs(found.rho_groups.mean()) < 0.3
    assert abs(found.rho_cells.mean()) < 0.06
    assert (found.p_groups < 0.05).sum() <= 3
    assert (dose_positions(features, labels)[levels(labels) > 0] > 0).mean() > 0.8


def test_a_shift_of_all_doses_alike_is_no_order():
    labels = make_labels(30)
    found = []
    for seed in range(8):
        features = make_features(labels, 0, seed=seed)
        features[levels(labels) > 0, 0] += 2.0
        found.append(dose_order(features, labels, seed=seed, **QUICK).iloc[-1].rho_cells)
    assert abs(np.mean(found)) < 0.08


def test_the_axis_does_not_know_the_dose():
    """Positions stay what they are to the last bit when the doses are exchanged."""
    labels = make_labels(12)
    features = make_features(labels, 0.7)
    turned = labels.copy()
    swap = {"Control": "Control"} | {f"D{k}": f"D{6 - k}" for k in range(1, 6)}
    turned["dose"] = labels.dose.map(swap)
    positions = dose_positions(features, labels)
    assert positions.equals(dose_positions(features, turned))
    rho = [dose_order(features, table, **QUICK).iloc[-1].rho_cells for table in (labels, turned)]
    assert rho[0] == pytest.approx(-rho[1])


def test_positions_are_held_out():
    """In noise of many features, an axis separates the cells that it was fitted on, no others."""
    labels = make_labels(10)
    features = make_features(labels, 0, n_features=40)
    positions = dose_positions(features, labels)
    control = labels.class_name == "DMSO"
    assert positions.isna().equals(control)
    assert abs(positions[~control].mean()) < 0.5


def test_positions_count_from_the_untreated_cells_of_the_day():
    labels = make_labels(60)
    positions = dose_positions(make_features(labels, 1.0, batch_shift=8.0), labels)
    means = positions.groupby(levels(labels)).mean().dropna()
    np.testing.assert_allclose(means, means.index, atol=0.5)


def test_features_may_be_a_table_or_images():
    labels = make_labels(12)
    features = make_features(labels, 1.5, n_features=9)
    images = features.reshape(-1, 3, 3, 1)
    for values in (pd.DataFrame(features), images):
        assert dose_order(values, labels, **QUICK).rho_groups.min() > 0.8
    many = np.hstack([features, np.random.default_rng(0).normal(size=(len(labels), 200))])
    assert many.shape[1] > MAX_COMPONENTS
    assert treated(dose_distances(many, labels, **FEW)).distance.notna().all()


def test_constant_features_and_those_of_treated_cells_only():
    labels = make_labels(20)
    features = np.hstack([make_features(labels, 1.0), np.zeros((len(labels), 2))])
    features[levels(labels) == 5, -1] = 1.0  # never seen in untreated cells
    table = dose_distances(features, labels, **FEW)
    assert np.isfinite(table.distance).all()
    with pytest.raises(ValueError, match="No feature varies among the untreated"):
        dose_distances(np.zeros((len(labels), 3)), labels, **FEW)


@pytest.fixture(scope="module")
def simulated():
    """Phase images of a few simulated cells of each group, without batch effect."""
    parts, rows = [], []
    for group in DRUG.groups:
        cells = simulate_cells(
            group.class_name, 30, group.batch, seed=110, image_size=32, dose=group.dose
        )
        parts.append(cells.truth)
        rows += [(group.batch, group.class_name, group.dose)] * 30
    truth = np.concatenate(parts)
    return truth, pd.DataFrame(rows, columns=["batch", "class_name", "dose"])


def test_simulated_doses_are_in_order(simulated):
    truth, labels = simulated
    measures = measure_cells(truth, 45 / 32, mask=truth > 0.15, wavelength_um=1.06)
    distances = treated(dose_distances(measures, labels, **FEW))
    by_level = distances.groupby(["class_name", "level"]).distance.mean().unstack()
    # The mean over two batches of 30 cells leaves room for one swap of neighbours.
    rho = by_level.T.corrwith(pd.Series(by_level.columns, by_level.columns), method="spearman")
    assert (rho > 0.9 - 1e-9).all(), by_level  # 0.9 up to rounding
    assert (by_level[5] > 2).all() and (by_level[1] < 1.5).all()
    order = dose_order(measures, labels, **QUICK)
    overall = order[order.batch == "all"]
    assert set(overall.class_name) == set(DRUG.classes) - {"DMSO"}
    assert (overall.rho_groups >= 0.8).all()
    assert (overall.rho_cells > overall.null_95_cells).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: (f[:-1], t), "one row per label"),
        (lambda f, t: (f, t.drop(columns="dose")), "complete `dose`"),
        (lambda f, t: (f, t.assign(dose="X9")), "'X9' is no dose"),
        (lambda f, t: (f, t.assign(class_name="Docetaxel")), "untreated 'DMSO'"),
        (lambda f, t: (f, t.assign(class_name="DMSO")), "at least one drug"),
        (lambda f, t: (f + np.where(np.arange(len(f)) == 7, np.nan, 0)[:, None], t), "row 7"),
    ],
)
def test_wrong_cells(change, message):
    labels = make_labels(6).astype(str)
    with pytest.raises(ValueError, match=message):
        dose_distances(*change(make_features(labels), labels), **FEW)


def test_wrong_groups():
    labels = make_labels(6)
    features = make_features(labels)
    alone = ((labels.batch == "B1") | (labels.class_name != "DMSO")).to_numpy()
    with pytest.raises(ValueError, match="no DMSO cells in B2"):
        dose_distances(features[alone], labels[alone], **FEW)
    few = (
        (labels.dose != "D3") | (labels.groupby("dose", observed=True).cumcount() < 3)
    ).to_numpy()
    with pytest.raises(ValueError, match=r"Docetaxel/B1/3 .*has 3 cells"):
        dose_distances(features[few], labels[few], **FEW)
    two = labels.dose.isin(["Control", "D1", "D5"]).to_numpy()
    with pytest.raises(ValueError, match=r"B1 has the dose levels \[1, 5\]"):
        dose_order(features[two], labels[two], **QUICK)
