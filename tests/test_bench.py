"""The bench: what it counts, that both sides do the same work, and what it writes."""

import json
import platform
import sys
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pandas as pd
import pytest
from training_cells import TINY, make_cells, untraced_steps

from benchmarks.bench import machine, measuring, work
from benchmarks.bench.cells import write_files
from benchmarks.bench.measuring import bench, measure
from benchmarks.bench.operations import count_operations, step_operations
from benchmarks.bench.processes import in_new_process
from benchmarks.bench.table import BenchResult, Measurement
from cytomad_lib.cli import main
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.networks import build_discriminator, build_generator
from cytomad_lib.prediction import predict
from cytomad_lib.training.batch_removal import BatchRemoval, Classifiers
from cytomad_lib.training.minibatches import Minibatches
from cytomad_lib.training.pix2pix import Pix2Pix

EFFORT = work.Cost(
    repeats=2,
    long_repeats=1,
    steps=2,
    groups=2,
    cells_per_group=3,
    round_cells=1,
    simulated=2,
    pairs=2,
    stored_size=20,
)
QUICK_PARTS = ("pretraining step", "inference", "loading", "simulating")

published_way = work.find_published_way()


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 1e-9)
    monkeypatch.setattr(measuring, "PRODUCT_SIZE", 32)


@pytest.fixture(autouse=True)
def nothing_traced():
    with untraced_steps():
        yield


def networks():
    sizes = TINY.image_network
    return build_generator(**sizes, seed=0), build_discriminator(**sizes, seed=1)


# --- Operations ------------------------------------------------------------------------------


def small_network():
    """Two convolutions, one up again, and a dense layer; counted by hand below."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 4, strides=2, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2DTranspose(2, 4, strides=2, padding="same")(x)
    x = keras.layers.Dense(7)(keras.layers.Flatten()(x))
    return keras.Model(inputs, x)


CONV = 2 * (4 * 4) * 3 * 5 * (4 * 4)  # per pixel that comes out
TRANSPOSED = 2 * (4 * 4) * 5 * 2 * (4 * 4)  # per pixel that goes in
DENSE = 2 * (8 * 8 * 2) * 7


def test_operations_are_those_counted_by_hand():
    network = small_network()
    assert count_operations(network) == CONV + TRANSPOSED + DENSE
    # The first layer's gradient with respect to the image is of use only if that is asked for.
    learning = count_operations(network, weights=True, inner=True)
    assert learning == 2 * CONV + 3 * TRANSPOSED + 3 * DENSE
    assert count_operations(network, inputs=True) == 2 * (CONV + TRANSPOSED + DENSE)


def test_a_layer_behind_a_concatenation_of_inputs_is_a_first_layer():
    _, discriminator = networks()
    first = discriminator.layers[3]
    assert isinstance(first, keras.layers.Conv2D)
    operations = 2 * 4 * 4 * 2 * TINY.base_filters * 8 * 8
    three = 3 * count_operations(discriminator)
    assert count_operations(discriminator, weights=True, inner=True) == three - operations


def test_a_step_needs_every_part_once():
    generator, discriminator = networks()
    alternating = step_operations(generator, discriminator)
    judge = small_network()
    assert step_operations(generator, discriminator, [judge]) - alternating == 2 * (
        CONV + TRANSPOSED + DENSE
    )
    saved = alternating - step_operations(generator, discriminator, updates="simultaneous")
    assert saved == count_operations(discriminator)


def test_a_layer_that_cannot_be_counted_is_named():
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, keras.layers.DepthwiseConv2D(3, name="odd")(inputs))
    with pytest.raises(ValueError, match="odd.*DepthwiseConv2D"):
        count_operations(network)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own profiler")
def test_tensorflow_counts_the_same():
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    network = build_discriminator(**TINY.image_network)
    tf.config.run_functions_eagerly(False)
    shapes = [tf.TensorSpec((1, 16, 16, 1)), tf.TensorSpec((1, 16, 16, 1))]
    traced = tf.function(lambda *images: network(list(images))).get_concrete_function(*shapes)
    graph = convert_variables_to_constants_v2(traced).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    options = options.with_empty_output().build()
    counted = sum(
        node.total_float_ops
        for node in profiler.profile(graph, options=options).children
        if node.name.endswith("convolution")
    )
    assert counted == count_operations(network)


# --- The published way -----------------------------------------------------------------------


def weights(network):
    return [weight.copy() for weight in network.get_weights()]


def same(before, network):
    return all(np.array_equal(b, now) for b, now in zip(before, network.get_weights(), strict=True))


def test_both_ways_of_pretraining_learn_alike():
    cells = make_cells()
    way = published_way.Pretraining(*networks(), TINY)
    theirs = [way.step(cells) for _ in range(12)]
    model = Pix2Pix(*networks(), TINY)
    model.compile()
    feed = Minibatches.of_cells(cells, TINY.batch_size)
    ours = model.fit(feed, epochs=6, shuffle=False, verbose=0).history  # 12 steps of 6 cells
    assert np.isfinite([list(losses.values()) for losses in theirs]).all()
    for name in ("mae", "discriminator_loss"):
        late = np.mean([losses[name] for losses in theirs[-4:]])
        assert late == pytest.approx(np.mean(ours[name][-2:]), rel=0.3), name
    assert theirs[0]["loss"] == pytest.approx(100 * theirs[0]["mae"] + np.log(2), abs=0.2)


def test_the_discriminator_of_the_published_way_really_learns_and_is_frozen_for_the_generator():
    cells, (generator, discriminator) = make_cells(), networks()
    way = published_way.Pretraining(generator, discriminator, TINY)
    before = weights(discriminator)
    way.combined.train_on_batch(
        cells.brightfield[:6], [np.ones((6, 2, 2, 1), "float32"), cells.qpi[:6]]
    )
    assert same(before, discriminator)
    moved = weights(generator)
    way.discriminator.train_on_batch(
        [cells.brightfield[:6], cells.qpi[:6]], np.ones((6, 2, 2, 1), "float32")
    )
    assert not same(before, discriminator) and same(moved, generator)


def test_the_published_way_of_removal_has_the_same_losses_and_leaves_the_classifiers_alone():
    cells, classifiers = make_cells(), Classifiers.build(7, 7, TINY, seed=2)
    way = published_way.BatchRemoval(*networks(), classifiers, TINY)
    judges = [classifiers.class_mlp, classifiers.class_cnn, classifiers.batch_cnn]
    judges += classifiers.batch_mlps
    before = [weights(judge) for judge in judges]
    theirs = [way.step(cells) for _ in range(2)]
    assert all(same(b, judge) for b, judge in zip(before, judges, strict=True))
    model = BatchRemoval(*networks(), Classifiers.build(7, 7, TINY, seed=2), TINY)
    model.compile()
    feed = Minibatches.of_cells(cells, TINY.batch_size)
    ours = model.fit(feed, epochs=1, shuffle=False, verbose=0).history
    mean = np.mean([losses["loss"] for losses in theirs])
    assert mean == pytest.approx(ours["loss"][0], rel=0.1)


def test_a_round_of_the_published_way_has_new_mlps_of_disjoint_features():
    cells, classifiers = make_cells(), Classifiers.build(7, 7, TINY, seed=2)
    way = published_way.BatchRemoval(*networks(), classifiers, replace(TINY, refit_every=1))
    old = list(classifiers.batch_mlps)
    losses = way.round(cells)
    assert len(losses) == len(cells) // TINY.batch_size
    assert not set(map(id, old)) & set(map(id, classifiers.batch_mlps))
    np.testing.assert_array_equal(np.sort(way.subsets.ravel()), np.arange(TINY.n_features))


def test_both_ways_predict_the_same():
    cells, (generator, _) = make_cells(), networks()
    images, features = published_way.predict_cells(generator, cells)  # the cells are in groups
    ours = predict(generator, cells)
    np.testing.assert_allclose(images, ours.images, atol=1e-5)
    np.testing.assert_allclose(features, ours.features, atol=1e-5)


def test_both_ways_load_the_same(tmp_path):
    folder = write_files(tmp_path, 20, {"Train": 3})
    cells = load_cells(folder, "Train", image_size=16)
    brightfield, qpi, batches, classes = published_way.load_cells(folder, "Train", 16)
    np.testing.assert_allclose(brightfield, cells.brightfield, atol=1e-4)
    np.testing.assert_allclose(qpi, cells.qpi, atol=1e-4)
    np.testing.assert_array_equal(batches, cells.batch_codes)
    np.testing.assert_array_equal(classes, cells.class_codes)
    assert cells.qpi.std() > 0.1


# --- Measuring -------------------------------------------------------------------------------


def test_sides_take_turns_and_the_ratio_is_that_of_neighbours(monkeypatch):
    calls = []

    def side(name, seconds):
        def run():
            calls.append(name)
            return next(seconds)

        return lambda: run

    # The machine becomes three times slower; the first runs do not count.
    sides = {
        "ours": side("ours", iter([50.0, 2.0, 2.0, 6.0])),
        "published": side("published", iter([90.0, 4.0, 4.0, 12.0])),
    }
    step = work.Benchmark("step", 2, sides, operations=10)

    class Product:
        rates = iter([10.0, 10.0, 10 / 3])

        def rate(self):
            return next(self.rates)

    found = Measurement("tiny", "work", "step", False, 10, *measure(step, 3, Product()))
    o, p = "ours", "published"
    assert calls == [o, p, o, p, p, o, o, p]
    row = found.row()
    assert row["ours"] == 1.0 and row["published"] == 2.0  # seconds per step, medians
    assert (row["ratio"], row["ratio_q1"], row["ratio_q3"]) == (2.0, 2.0, 2.0)
    assert row["share"] == pytest.approx(1.0) and row["published_share"] == pytest.approx(0.5)
    assert row["first_run_s"] == 50.0 and row["ours_q3"] == 2.0 and row["unit"] == "s/step"


def test_rates_are_told_per_second():
    found = Measurement("p", "w", "cell", True, None, {"ours": 1.0}, {"ours": [0.25]}, [1.0])
    row = found.row()
    assert row["ours"] == 4.0 and row["unit"] == "cells/s"
    assert row["ratio"] is None and row["share"] is None


def test_the_product_is_counted_and_repeated(monkeypatch):
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 0.02)
    product = machine.MatrixProduct(64)
    assert product.operations == 2 * 64**3
    assert product.products > 1 and product.rate() > 0


def test_peak_memory_grows_with_what_is_held():
    before = machine.peak_memory()
    held = np.ones(200_000_000 // 8)
    assert held.sum() > 0
    after = machine.peak_memory()
    assert after > 150e6 and after >= before


def tiny_bench(**options):
    options = {"verbose": 0, "memory": False, "works": QUICK_PARTS} | options
    return bench([TINY], costs={"tiny": EFFORT}, **options)


def test_the_table_is_written_with_versions_and_hardware(tmp_path, capsys):
    result = tiny_bench(verbose=1)
    paths = result.write(tmp_path / "bench")
    assert [path.name for path in paths] == ["bench.csv", "bench.json"]
    table = pd.read_csv(paths[0])
    assert list(table["work"]) == list(QUICK_PARTS)
    assert (table["ours"] > 0).all() and (table["repeats"] == [2, 2, 1, 2]).all()
    beside = table["work"] != "simulating"
    assert (table["ratio"].notna() == beside).all()
    text = paths[1].read_text()
    details = json.loads(text)
    assert details["versions"]["keras"] == keras.__version__
    assert details["hardware"]["cores"] >= 1 and details["matrix_product_gflops"] > 0
    assert len(details["measurements"][0]["seconds"]["ours"]) == 2
    assert (platform.node() or "?") not in text and str(tmp_path) not in text
    assert "tiny: pretraining step" in capsys.readouterr().out
    for word in ("ratio", "tiny: loading", "of matrix product", "resized to 16"):
        assert word in result.summary()


def test_without_the_folder_of_the_published_way_only_ours_is_measured(monkeypatch):
    monkeypatch.setattr(measuring, "find_published_way", lambda: None)
    result = tiny_bench(works=("inference",))
    assert result.table["ratio"].isna().all() and (result.table["ours"] > 0).all()
    assert "published way" not in result.summary().split("\n\n")[1]
    assert "benchmarks/" in result.summary()


def test_the_folder_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(work, "__file__", str(tmp_path / "cytomad_lib" / "bench" / "work.py"))
    assert work.find_published_way() is None


def test_a_round_and_a_refit_are_measured_where_they_are_asked_for(monkeypatch):
    few = partial(work.make_cells, groups=6)
    monkeypatch.setattr(work, "make_cells", lambda size, n, groups: few(size, n))
    works = ("re-fit of the batch MLPs", "removal round")
    assert len(tiny_bench(works=works, rounds=()).table) == 0
    # Several epochs to a round, so that it is longer beyond what such short times scatter by.
    preset = replace(TINY, refit_every=6, refit_epochs=1)
    result = bench(
        [preset],
        costs={"tiny": EFFORT},
        verbose=0,
        memory=False,
        works=works,
        rounds=("tiny",),
    )
    refit, whole = result.table["ours"]
    assert 0 < refit < whole and result.table["ratio"].notna().all()


def test_memory_and_cold_start_are_measured_in_processes_of_their_own(monkeypatch):
    result = tiny_bench(works=("simulating", "cold start to first epoch"), memory=True)
    memory, start = result.table["memory_mb"], result.table["ours"]
    assert memory[0] > 50 and np.isnan(memory[1])
    assert start[1] > 1  # an interpreter and Keras alone take longer
    with pytest.raises(CytomadError, match="inference.*ended with code 1.*Expected"):
        in_new_process(
            work.Case(TINY, replace(EFFORT, cells_per_group=-1), "nowhere", None),
            "inference",
            "ours",
        )


def test_a_gpu_that_is_not_there_is_missed_clearly(monkeypatch):
    monkeypatch.setattr(measuring, "accelerator", lambda: None)
    with pytest.raises(CytomadError, match="finds no GPU.*Expected.*leave --gpu out"):
        tiny_bench(gpu=True)


def test_on_a_gpu_our_side_alone_is_measured(monkeypatch):
    for module in (machine, measuring):
        monkeypatch.setattr(module, "accelerator", lambda: "Some chip")
    monkeypatch.setattr(measuring, "accelerator_peak", lambda: 5_000_000)
    result = tiny_bench(gpu=True, memory=True, works=("inference", "loading"))
    assert list(result.table["work"]) == ["inference"]
    assert result.table["ratio"].isna().all() and result.table["memory_mb"][0] == 5
    assert "GPU: Some chip" in result.summary() and "our side alone" in result.summary()


# --- The command line ------------------------------------------------------------------------


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cytomad_lib", "bench", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_hands_on_what_is_asked_and_writes(monkeypatch, tmp_path, capsys):
    asked = {}

    def fake(presets, quick, gpu, rounds, verbose):
        asked.update(presets=[p.name for p in presets], quick=quick, gpu=gpu, rounds=list(rounds))
        found = Measurement("demo", "loading", "pair", True, None, {}, {"ours": [1.0]}, [1.0])
        return BenchResult([found], machine.machine_facts(), ["A note."])

    monkeypatch.setattr(measuring, "bench", fake)
    words = ("--preset", "demo", "--quick", "--rounds", "none", "--out", tmp_path / "out")
    assert command(monkeypatch, *words) == 0
    assert asked == {"presets": ["demo"], "quick": True, "gpu": False, "rounds": []}
    assert (tmp_path / "out" / "bench.csv").exists()
    assert "demo: loading" in capsys.readouterr().out


def test_an_unknown_preset_is_refused(monkeypatch, tmp_path):
    end = command(monkeypatch, "--preset", "huge", "--out", tmp_path / "out")
    assert "'huge'" in end and "published, demo or both" in end
    assert not (tmp_path / "out").exists()
