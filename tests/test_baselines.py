"""The baselines must do what their papers say, and name the labels that they use."""

import logging
import sys

import numpy as np
import pandas as pd
import pytest

from cytomad_lib.data.layouts import LUNG
from cytomad_lib.evaluation import baselines, combat
from cytomad_lib.evaluation.components import active_components
from cytomad_lib.evaluation.methods import combat as combat_method
from cytomad_lib.evaluation.methods import harmony, leace_within_class, standardise
from cytomad_lib.evaluation.probes import ProbeError

PER_GROUP = 40
COLUMNS = 16
ALL = (
    "untouched",
    "per-batch standardisation",
    "per-batch standardisation within class",
    "Harmony",
    "ComBat",
    "ComBat with class",
    "LEACE",
    "LEACE within class",
    "sphering",
)
ORACLES = {"per-batch standardisation within class", "ComBat with class"}


def lung_labels(per_group=PER_GROUP):
    """Return the published design: each class in 3 of the 7 batches."""
    rows = [(g.batch, g.class_name) for g in LUNG.groups for _ in range(per_group)]
    return pd.DataFrame(rows, columns=["batch", "class_name"]).astype("category")


def crossed_labels(per_group=PER_GROUP):
    rows = [(f"B{b}", c) for c in "XY" for b in range(3) for _ in range(per_group)]
    return pd.DataFrame(rows, columns=["batch", "class_name"]).astype("category")


def make_features(labels, seed=0, cell_seed=0, shift=2.0, spread=0.3, columns=COLUMNS):
    """Return (class signal and noise only, the same with each batch's shift and spread)."""
    rng = np.random.default_rng(seed)
    classes, batches = (labels[c].cat.codes.to_numpy() for c in ("class_name", "batch"))
    signal = 2 * rng.normal(size=(classes.max() + 1, columns))
    shifts = shift * rng.normal(size=(batches.max() + 1, columns))
    spreads = np.exp(spread * rng.normal(size=(batches.max() + 1, columns)))
    noise = np.random.default_rng(cell_seed + 1000).normal(size=(len(labels), columns))
    clean = signal[classes] + noise
    return clean, signal[classes] + shifts[batches] + spreads[batches] * noise


def class_means(features, labels):
    means = pd.DataFrame(features).groupby(labels["class_name"].to_numpy()).mean().to_numpy()
    return means - means.mean(axis=0)


def class_damage(features, labels, truth):
    """Error of the differences between the class means, as a fraction of those differences."""
    wanted = class_means(truth, labels)
    return np.linalg.norm(class_means(features, labels) - wanted) / np.linalg.norm(wanted)


def batch_gap(features, labels):
    """Spread of the group means inside the classes, root mean square."""
    keys = [labels["class_name"].to_numpy(), labels["batch"].to_numpy()]
    means = pd.DataFrame(features).groupby(keys).mean()
    return float(
        np.sqrt(((means - means.groupby(level=0).transform("mean")) ** 2).to_numpy().mean())
    )


def one_hot(values):
    return pd.get_dummies(values).to_numpy(dtype=float)


LABELS = lung_labels()
CLEAN, SHIFTED = make_features(LABELS)


# --- the set of baselines --------------------------------------------------------------------


def test_all_baselines_are_there_and_flagged():
    _, train = make_features(LABELS, cell_seed=1)
    corrected = baselines.baseline_features(SHIFTED, LABELS, train, LABELS)
    assert tuple(corrected) == ALL
    assert {name for name, baseline in corrected.items() if baseline.oracle} == ORACLES
    for name, baseline in corrected.items():
        assert baseline.name == name and baseline.note
        assert ("needs class" in baseline.note) == baseline.oracle
        if baseline.features is not None:
            assert len(baseline.features) == len(SHIFTED)
            assert baseline.features.dtype == np.float32
            assert np.isfinite(baseline.features).all()
    np.testing.assert_array_equal(corrected["untouched"].features, SHIFTED.astype(np.float32))


def test_only_oracles_look_at_the_class_of_the_test_cells():
    _, train = make_features(LABELS, cell_seed=1)
    wrong = LABELS.assign(class_name=np.roll(LABELS["class_name"].to_numpy(), 17))
    right = baselines.baseline_features(SHIFTED, LABELS, train, LABELS)
    other = baselines.baseline_features(SHIFTED, wrong.astype("category"), train, LABELS)
    for name in ALL:
        if right[name].features is not None and other[name].features is not None:
            same = np.array_equal(right[name].features, other[name].features)
            assert same != right[name].oracle, name


def test_without_training_cells_leace_is_a_note():
    corrected = baselines.baseline_features(SHIFTED, LABELS)
    for name in ("LEACE", "LEACE within class"):
        assert corrected[name].features is None
        assert "training cells" in corrected[name].note
    assert corrected["ComBat"].features is not None


def spoiled_features():
    features = np.maximum(SHIFTED, 0).astype(np.float32)
    features[:, 3] = 0.1  # 0.1 has no exact binary form: its mean is off by rounding
    features[:, 4] = 0
    features[(LABELS["batch"] == "Batch2").to_numpy(), 5] = 0  # dead in one batch
    features[:, 6] = (LABELS["batch"] == "Batch3").to_numpy()  # nothing but the batch
    return features


@pytest.mark.parametrize("installed", [True, False])
def test_features_that_never_vary_stay_and_nothing_is_nan(monkeypatch, installed):
    if installed:
        pytest.importorskip("harmonypy")
    else:
        monkeypatch.setitem(sys.modules, "harmonypy", None)
    features = spoiled_features()
    for name, baseline in baselines.baseline_features(features, LABELS, features, LABELS).items():
        if name == "Harmony" and not installed:
            continue
        assert np.isfinite(baseline.features).all(), name
        assert np.abs(baseline.features).max() < 50, name
    found = {
        "standardised": standardise.standardise_batches(features, LABELS),
        "ComBat": combat.combat(features, LABELS),
        "ComBat with class": combat.combat(features, LABELS, with_class=True),
    }
    for name, values in found.items():
        assert np.ptp(values[:, 6]) < 1e-5, name
    if installed:
        found["Harmony"] = harmony.harmony(features, LABELS)
    for name, values in found.items():
        np.testing.assert_array_equal(values[:, 3:5], features[:, 3:5], err_msg=name)
        assert np.isfinite(values).all() and np.abs(values).max() < 50, name


def test_collapsed_features_do_not_stop_the_table():
    pytest.importorskip("harmonypy")
    features = np.full((len(LABELS), 4), 0.7)
    corrected = baselines.baseline_features(features, LABELS, features, LABELS)
    for name, baseline in corrected.items():
        if name.startswith("ComBat"):
            assert baseline.features is None and "0 features vary" in baseline.note
        else:
            assert np.ptp(baseline.features) == 0, name


# --- components, and the null control ---------------------------------------------------------


def silent_units(labels, seed=0, units=40):
    """Return features like those of a ReLU layer: mixtures of 8 traits, 0 in 60 to 99.9 %."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(labels), 8)) @ rng.normal(size=(8, units))
    silent = 1 - np.geomspace(0.4, 0.001, units)
    cuts = [np.quantile(unit, share) for unit, share in zip(values.T, silent, strict=True)]
    return np.maximum(values - cuts, 0).astype(np.float32)


def test_components_are_white_and_of_active_units_only():
    features = silent_units(LABELS)
    features[5, 0] = 1e3  # with the zeros of the others, this unit is active in one cell
    features[6:, 0] = features[:5, 0] = 0
    components = active_components(features)
    found = components(features)
    assert found.shape[1] < 40
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(found.shape[1]), atol=1e-3)
    assert np.abs(found).max() < 20
    # Cells on their own are mapped as they are among others.
    np.testing.assert_array_equal(components(features[:3]), found[:3])


def test_where_no_unit_is_active_all_that_vary_are_taken():
    features = np.zeros((200, 3))
    features[:5, 0] = features[3:9, 1] = 1
    assert active_components(features)(features).shape == (200, 2)


def test_no_baseline_writes_a_batch_into_cells_that_have_none():
    """Two halves of the same cells: the zeros of silent units must not tell them apart."""
    pytest.importorskip("harmonypy")
    labels = lung_labels(30)
    features = silent_units(labels)
    table = baselines.null_control(features, labels, features, labels)
    assert tuple(table.index) == ALL
    assert (table["chance"] == 0.5).all() and table["null_95"].between(0.5, 0.6).all()
    assert not table["writes_batch"].any(), table


def test_the_null_control_finds_who_writes_a_batch_in(monkeypatch):
    # Without components: a unit's zeros go to another value in each half.
    labels = lung_labels(20)
    features = silent_units(labels)
    monkeypatch.setattr(combat_method, "noisy_components", lambda features, seed: features)
    table = baselines.null_control(features, labels)
    assert table.loc["ComBat", "null_control"] > 0.8 and table.loc["ComBat", "writes_batch"]
    assert not table.loc["untouched", "writes_batch"]
    assert "LEACE" not in table.index  # there were no training cells


# --- standardisation -------------------------------------------------------------------------


def test_standardisation_gives_every_batch_the_same_mean_and_spread():
    found = standardise.standardise_batches(SHIFTED, LABELS)
    table = pd.DataFrame(found.astype(float)).groupby(LABELS["batch"].to_numpy())
    assert table.mean().std().max() < 1e-5
    assert table.std(ddof=0).std().max() < 1e-5
    np.testing.assert_allclose(found.mean(axis=0), SHIFTED.mean(axis=0), atol=1e-4)


def test_standardisation_undoes_a_crossed_design_but_not_a_confounded_one():
    labels = crossed_labels()
    clean, shifted = make_features(labels, spread=0)
    assert class_damage(standardise.standardise_batches(shifted, labels), labels, clean) < 0.2
    assert class_damage(standardise.standardise_batches(CLEAN, LABELS), LABELS, CLEAN) > 0.3


def test_standardisation_within_class_keeps_each_class_and_removes_its_batches():
    found = standardise.standardise_batches(SHIFTED, LABELS, within_class=True)
    assert batch_gap(found, LABELS) < 1e-5
    assert class_damage(found, LABELS, SHIFTED) < 1e-5


# --- ComBat ----------------------------------------------------------------------------------


def combat_model(labels, n_features=60, seed=0):
    """Draw data from ComBat's own model: returns (without batch, with batch)."""
    rng = np.random.default_rng(seed)
    classes, batches = (one_hot(labels[c]) for c in ("class_name", "batch"))
    spread = rng.uniform(0.5, 2, n_features)
    expected = rng.normal(5, 2, n_features) + classes @ rng.normal(
        0, 1, (classes.shape[1], n_features)
    )
    shifts = rng.normal(
        rng.normal(0, 1, (batches.shape[1], 1)), 0.7, (batches.shape[1], n_features)
    )
    shifts -= shifts.mean(axis=0)  # the model has no way to know the mean without batches
    variances = 1 / rng.gamma(6, 1 / 5, (batches.shape[1], n_features))
    noise = rng.normal(size=(len(labels), n_features))
    clean = expected + spread * noise
    return clean, expected + spread * (batches @ shifts + noise * np.sqrt(batches @ variances))


def test_combat_recovers_data_of_its_own_model():
    clean, shifted = combat_model(LABELS)
    found = combat.combat(shifted, LABELS, with_class=True)
    error = np.sqrt(np.mean((found - clean) ** 2))
    assert error < 0.25 * np.sqrt(np.mean((shifted - clean) ** 2))
    assert class_damage(found, LABELS, clean) < 0.1 < class_damage(shifted, LABELS, clean)


def test_combat_shrinks_the_shifts_of_small_batches_toward_each_other():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 200)) + 1.0  # the true shift of every feature is 1
    shift, variance = combat._shrunken(noise, 1e-6, 500)
    assert np.mean((shift - 1) ** 2) < 0.3 * np.mean((noise.mean(axis=0) - 1) ** 2)
    assert np.mean((variance - 1) ** 2) < 0.3 * np.mean((noise.var(axis=0, ddof=1) - 1) ** 2)


def test_combat_estimates_solve_their_equations():
    noise = np.random.default_rng(1).normal(0.5, 1.5, size=(12, 30))
    shift, variance = combat._shrunken(noise, 1e-12, 2000)
    mean, s2 = noise.mean(axis=0), noise.var(axis=0, ddof=1)
    width, centre, m, v = mean.var(ddof=1), mean.mean(), s2.mean(), s2.var(ddof=1)
    # Johnson et al. 2007, the two posterior means that depend on each other.
    wanted = (12 * width * mean + variance * centre) / (12 * width + variance)
    np.testing.assert_allclose(shift, wanted, rtol=1e-8)
    squares = ((noise - shift) ** 2).sum(axis=0)
    prior, rate = (2 * v + m**2) / v, (m * v + m**3) / v
    np.testing.assert_allclose(variance, (rate + squares / 2) / (6 + prior - 1), rtol=1e-8)


def test_combat_with_many_cells_is_near_standardisation():
    labels = crossed_labels(400)
    _, shifted = make_features(labels)
    found, simple = (
        combat.combat(shifted, labels),
        standardise.standardise_batches(shifted, labels),
    )
    assert np.abs(found - simple).mean() < 0.03 * np.abs(found - shifted).mean()


def test_combat_without_class_damages_confounded_classes():
    blind = combat.combat(SHIFTED, LABELS)
    oracle = combat.combat(SHIFTED, LABELS, with_class=True)
    assert class_damage(oracle, LABELS, CLEAN) < 0.1
    assert class_damage(blind, LABELS, CLEAN) > 0.3
    assert batch_gap(oracle, LABELS) < 0.15 * batch_gap(SHIFTED, LABELS)


def test_combat_needs_linked_batches_and_two_cells():
    apart = pd.DataFrame({"batch": ["B1"] * 9 + ["B2"] * 9, "class_name": ["X"] * 9 + ["Y"] * 9})
    features = np.random.default_rng(0).normal(size=(18, 5))
    with pytest.raises(ProbeError, match="share no class"):
        combat.combat(features, apart, with_class=True)
    corrected = baselines.baseline_features(features, apart)
    assert corrected["ComBat with class"].features is None
    assert "link all batches" in corrected["ComBat with class"].note
    with pytest.raises(ProbeError, match="B2 has one cell"):
        combat.combat(features[:10], apart[:10])


# --- LEACE -----------------------------------------------------------------------------------


def test_leace_within_class_keeps_class_means_and_removes_batches_of_new_cells():
    _, train = make_features(LABELS, cell_seed=1, spread=0, columns=40)
    _, test = make_features(LABELS, cell_seed=2, spread=0, columns=40)
    corrected = baselines.baseline_features(test, LABELS, train, LABELS)
    within, plain = corrected["LEACE within class"].features, corrected["LEACE"].features
    test = active_components(train)(test)
    # What is left is the sampling error of 40 cells; components have a spread of 1.
    assert batch_gap(within, LABELS) < PER_GROUP**-0.5 < 0.5 * batch_gap(test, LABELS)
    assert class_damage(within, LABELS, test) < 0.1
    assert class_damage(plain, LABELS, test) > 0.3
    fitted = leace_within_class.fit(train, None, LABELS, seed=0)
    erased = leace_within_class.transform(fitted, train, None, LABELS)
    components = active_components(train)(train)
    assert batch_gap(erased, LABELS) < 0.25 * batch_gap(components, LABELS)


# --- Harmony ---------------------------------------------------------------------------------


def test_missing_harmony_is_a_note_not_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    corrected = baselines.baseline_features(SHIFTED, LABELS)
    assert tuple(corrected) == ALL
    assert corrected["Harmony"].features is None and not corrected["Harmony"].oracle
    assert "pip install harmonypy" in corrected["Harmony"].note


def test_harmony_mixes_crossed_batches_keeps_classes_and_is_silent(capfd, caplog):
    pytest.importorskip("harmonypy")
    caplog.set_level(logging.DEBUG)
    labels = crossed_labels()
    clean, shifted = make_features(labels, shift=0.5, spread=0)
    found = harmony.harmony(shifted, labels, seed=3)
    assert batch_gap(found, labels) < 0.4 * batch_gap(shifted, labels)
    assert class_damage(found, labels, clean) < 0.3
    np.testing.assert_array_equal(found, harmony.harmony(shifted, labels, seed=3))
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_harmony_takes_as_many_cells_as_features():
    pytest.importorskip("harmonypy")
    labels = crossed_labels(6)
    features = np.random.default_rng(0).normal(size=(len(labels), len(labels)))
    features += 0.8 * (labels["batch"] == "B1").to_numpy()[:, None]
    found = harmony.harmony(features, labels)
    assert found.shape == features.shape
    # One call with cells and components exchanged would "correct" columns, not cells.
    gaps = [
        f[labels["batch"] == "B1"].mean() - f[labels["batch"] == "B0"].mean()
        for f in (found, features)
    ]
    assert abs(gaps[0]) < 0.7 * gaps[1]


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHIFTED[:-1], LABELS), "one row per label"),
        ((SHIFTED * np.nan, LABELS), "not finite"),
        ((SHIFTED, LABELS.assign(batch="B1")), "at least two"),
        ((SHIFTED, LABELS, SHIFTED), "both"),
        ((SHIFTED, LABELS, SHIFTED[:, :5], LABELS), "have 5 features, the test cells 16"),
    ],
)
def test_errors_say_what_was_found(arguments, message):
    with pytest.raises(ProbeError, match=message):
        baselines.baseline_features(*arguments)
