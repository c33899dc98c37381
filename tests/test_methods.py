"""Methods get what they declare, and do what they say."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_baselines import LABELS, SHIFTED, batch_gap, lung_labels, make_features, silent_units

from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation import baselines, probes, ranking
from cytomad_lib.evaluation.biology import BIOLOGY
from cytomad_lib.evaluation.image_tables import TRUTH
from cytomad_lib.evaluation.methods import (
    class_cnn,
    phase_measures,
    sphering,
    untrained_generator,
)
from cytomad_lib.evaluation.tasks import ProbeError

EXAMPLE = Path(__file__).parents[1] / "docs" / "my_method.py"
MODULES = baselines.field_methods(with_images=True) + [phase_measures]


def images_of(labels, seed=0, size=16):
    """Return discs on noise; their width tells the class, and their phase is 2 rad."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = 3 + 0.6 * labels["class_name"].cat.codes.to_numpy()[:, None, None]
    discs = (np.hypot(x, y) < radius)[..., None].astype("float32")
    brightfield = discs + rng.normal(0, 0.05, discs.shape).astype("float32")
    cells = labels.assign(cell=range(len(labels)))
    return CellImages(brightfield, 2 * discs, cells, 0.5, truth=2 * discs, wavelength_um=1.06)


def spy(needs, trains_on):
    """Return a method that keeps what it was given."""
    seen = []

    def fit(features, images, labels, seed):
        seen.append((features, images, labels))

    def transform(fitted, features, images, labels):
        seen.append((features, images, labels))
        return features

    names = {"NAME": "spy", "NEEDS": needs, "TRAINS_ON": trains_on}
    return SimpleNamespace(**names, fit=fit, transform=transform), seen


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_the_baselines_have_the_form_of_a_method_and_load_as_files(module):
    loaded = baselines.load_method(module.__file__)
    assert (loaded.NAME, loaded.NEEDS) == (module.NAME, module.NEEDS)
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) < 130


@pytest.mark.parametrize(
    ("needs", "columns"),
    [
        ("nothing", []),
        ("batch", ["batch"]),
        ("many cells of the batch", ["batch"]),
        ("class", ["batch", "class_name"]),
        ("phase microscope", []),
    ],
)
def test_a_method_gets_what_it_declares_and_nothing_else(needs, columns):
    labels = lung_labels(5)
    cells, features = images_of(labels), np.ones((len(labels), 3))
    method, seen = spy(needs, ("brightfield", "class_name"))
    baselines.run_method(method, (features, cells, labels), (features, cells, labels))
    trained, tested = seen[:2]
    assert trained[0] is None and list(trained[2]) == ["class_name"]
    assert trained[1].brightfield is cells.brightfield and trained[1].qpi is None
    assert list(tested[2]) == columns
    assert (tested[1].qpi is not None) == (needs == "phase microscope")
    assert not hasattr(tested[1], "truth")


def test_a_method_that_uses_other_cells_must_say_so():
    labels = lung_labels(5)
    test = np.random.default_rng(0).normal(size=(len(labels), 3)), None, labels
    method, _ = spy("nothing", ())
    method.transform = lambda fitted, features, images, labels: features - features.mean(axis=0)
    with pytest.raises(CytomadError, match="other cells are left out"):
        baselines.run_method(method, test)
    method.NEEDS = "many cells of the batch"
    assert np.abs(baselines.run_method(method, test).mean(axis=0)).max() < 1e-6


@pytest.mark.parametrize("returned", [np.ones(3), np.ones((2, 3)), np.full((105, 2), np.nan)])
def test_features_that_cannot_be_scored_are_refused(returned):
    labels = lung_labels(5)
    method, _ = spy("nothing", ())
    method.transform = lambda *given: returned
    with pytest.raises(ProbeError, match=r"spy returned features of shape .*for 105 cells"):
        baselines.run_method(method, (np.ones((105, 3)), None, labels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no Python file"),
        ("def fit(): pass", "lacks transform, NEEDS, TRAINS_ON"),
        ("NEEDS = 'class'; TRAINS_ON = ('batch',)\ntransform = print", "lacks fit"),
        ("NEEDS = 'luck'; TRAINS_ON = ()\ndef fit(): pass\ntransform = fit", "NEEDS = 'luck'"),
        ("NEEDS = 'class'; TRAINS_ON = 'qpi'\ndef fit(): pass\ntransform = fit", "a tuple"),
    ],
)
def test_a_file_that_is_no_method_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(CytomadError, match=message):
        baselines.load_method(path)


def test_the_example_is_short_and_removes_the_batch():
    method = baselines.load_method(EXAMPLE)
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 100
    _, train = make_features(LABELS, cell_seed=1, spread=0)
    found = baselines.baseline_features(SHIFTED, LABELS, train, LABELS, methods=[method])
    # The components have a spread of 1 before.
    assert batch_gap(found[method.NAME].features, LABELS) < 0.25
    control = baselines.null_control(SHIFTED, LABELS, train, LABELS, methods=[method])
    assert not control.loc[method.NAME, "writes_batch"]


def drug_labels(per_group=40):
    groups = [(f"B{b}", c) for b in range(3) for c in ("DMSO", "Docetaxel")]
    rows = [group for group in groups for _ in range(per_group)]
    return pd.DataFrame(rows, columns=["batch", "class_name"]).astype("category")


def test_sphering_counts_batches_from_their_untreated_cells():
    labels = drug_labels()
    _, shifted = make_features(labels, spread=0)
    fitted = sphering.fit(shifted, None, labels, seed=0)
    found = sphering.transform(fitted, shifted, None, labels)
    untreated = (labels["class_name"] == "DMSO").to_numpy()
    assert batch_gap(found[untreated], labels[untreated]) < 1e-5
    assert batch_gap(found, labels) < 0.3
    # Untreated cells vary alike in nearly all directions. Those of the batches had next to no
    # other variance; the estimate of 120 cells does not blow it up.
    variances = np.linalg.eigvalsh(np.cov(found[untreated].T))
    assert variances.max() < 1.5 and 0.8 < np.median(variances)


def test_without_untreated_cells_sphering_moves_no_batch():
    fitted = sphering.fit(SHIFTED, None, LABELS, seed=0)
    found = sphering.transform(fitted, SHIFTED, None, LABELS)
    components, _, origin, whiten = fitted
    np.testing.assert_allclose(found, (components(SHIFTED) - origin) @ whiten)
    first = (LABELS["batch"] == "Batch1").to_numpy()
    classes = LABELS["class_name"][first].to_numpy()
    inside = pd.DataFrame(found[first]).groupby(classes).transform(lambda x: x - x.mean())
    assert np.linalg.eigvalsh(np.cov(inside.T)).max() < 1.5


def test_an_untrained_generator_is_as_wide_as_the_trained_one_and_seeded():
    labels = lung_labels(2)
    test = np.ones((len(labels), 32)), images_of(labels), labels
    found = baselines.run_method(untrained_generator, test, seed=3)
    assert found.shape == (len(labels), 32) and np.ptp(found) > 0
    np.testing.assert_array_equal(found, baselines.run_method(untrained_generator, test, seed=3))
    assert np.abs(found - baselines.run_method(untrained_generator, test, seed=4)).max() > 0


def test_the_cnn_learns_the_class_from_brightfield(monkeypatch):
    monkeypatch.setattr(class_cnn, "STEPS", 60)
    labels = lung_labels(8)
    train, test = ((np.ones((len(labels), 8)), images_of(labels, s), labels) for s in (0, 1))
    found = baselines.run_method(class_cnn, test, train)
    assert found.shape == (len(labels), class_cnn.FEATURES)
    assert probes.class_accuracy(found, labels, n_permutations=0).accuracy > 0.7


def test_phase_measures_are_finite_where_there_is_no_cell():
    labels = lung_labels(1)
    cells = images_of(labels)
    cells.qpi[0] = 0
    found = baselines.run_method(phase_measures, (np.ones((len(labels), 1)), cells, labels))
    assert found.shape == (len(labels), 18) and not found[0].any() and found[1:, 0].min() > 0


def test_methods_that_use_no_batch_are_not_controlled():
    features = silent_units(LABELS)
    table = baselines.null_control(features, LABELS, methods=[untrained_generator, class_cnn])
    assert list(table.index) == ["untouched"]


# --- ranking ---------------------------------------------------------------------------------


def tidy(rows):
    chances = {"batch within class": 0.5, "class": 0.25, "class, unseen batch": 0.2, BIOLOGY: 0}
    return pd.DataFrame(
        [
            {"method": name, "measure": measure, "value": value, "chance": chance}
            for name, values in rows.items()
            for (measure, chance), value in zip(chances.items(), values, strict=True)
        ]
    )


def test_methods_are_ranked_by_their_worst_and_not_by_their_mean():
    table = tidy(
        {
            "blank": (0.5, 0.9, 0.8, 0.1),  # best mean, but keeps nothing
            "even": (0.7, 0.6, 0.5, 0.5),
            "sees the day": (0.9, 0.9, 0.8, 0.9),
            TRUTH: (0.5, 0.9, 0.8, 1.0),
        }
    )
    found = ranking.rank_methods(table)
    assert list(found.index) == [TRUTH, "even", "sees the day", "blank"]
    # By hand: (0.5 - 0.2) / (0.8 - 0.2), (1 - 0.9) / (1 - 0.5), and the R² as it is.
    assert found[ranking.WORST].tolist() == pytest.approx([1, 0.5, 0.2, 0.1])
    assert found[ranking.WEAKEST].tolist()[1:] == ["class", "batch removed", "biology"]
    text = ranking.ranking_text(found)
    assert text.index("even") < text.index("blank")


def test_what_is_not_known_is_ranked_last():
    table = tidy({"unknown": (0.5, 0.9, 0.8, np.nan), "poor": (0.9, 0.3, 0.3, 0.0)})
    found = ranking.rank_methods(table, pd.DataFrame({"needs": {"poor": "class"}}))
    assert list(found.index) == ["poor", "unknown"]
    assert np.isnan(found.loc["unknown", ranking.WORST]) and found.loc["poor", "needs"] == "class"
