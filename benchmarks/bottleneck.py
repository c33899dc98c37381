"""Find out why most bottleneck features of a narrow generator are exactly 0.

    python -m benchmarks.bottleneck --out results/bottleneck

Pretrains the demonstration preset in several variants and scores the features of the Test split.
Prints a table with a row per variant and writes it as CSV. A second call reuses what is finished.

Example
-------
>>> describe(np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]))["exactly 0"]
0.5
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from cytomad_lib.backend import keras
from cytomad_lib.config import DEMO
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.files import write_table
from cytomad_lib.evaluation.biology import biology_kept, participation_ratio
from cytomad_lib.evaluation.biophysics import measure_images
from cytomad_lib.evaluation.bottleneck import split_generator
from cytomad_lib.evaluation.dissection import exchange_paths
from cytomad_lib.evaluation.probes import score_results
from cytomad_lib.networks import LEAKY_SLOPE, build_generator
from cytomad_lib.runs import Run
from cytomad_lib.training.recipes import pretrain
from cytomad_lib.workflow import DEMO_CELLS, demo_dataset

layers = keras.layers


class FirstOnly(layers.Layer):
    """Stand where a decoder joins a skip connection, and leave the skip out."""

    def call(self, inputs):
        """Return the first of two tensors."""
        return inputs[0]


class NormalisedReLU(layers.Layer):
    """Batch normalisation, then ReLU: every feature is above 0 in about half of the cells."""

    def __init__(self, name=None):
        super().__init__(name=name)
        self.norm = layers.BatchNormalization(momentum=0.9)

    def call(self, inputs, training=None):
        """Normalise and cut off below 0."""
        return keras.ops.relu(self.norm(inputs, training=training))


def build_variant(*sizes, bottleneck=layers.ReLU, skips=True, **options):
    """Build the published generator with another bottleneck, or without skip connections.

    Parameters
    ----------
    bottleneck : callable (name) -> layer
        Follows the bottleneck's convolution.
    skips : bool
        Whether the decoder gets the stages of the encoder and the brightfield image.
    sizes, options
        Of `build_generator`.
    """
    relu, join = layers.ReLU, layers.Concatenate if skips else FirstOnly

    def activation(name=None):
        return bottleneck(name=name) if name == "bottleneck" else relu(name=name)

    with patch.multiple(layers, ReLU=activation, Concatenate=join):
        return build_generator(*sizes, **options)


LEAKY = partial(layers.LeakyReLU, LEAKY_SLOPE)
# Each variant: its preset, and how its generator differs from the published one.
VARIANTS = {
    "untrained": (replace(DEMO, pretraining_epochs=0), {}),
    "demo: 64 features, 8 epochs": (DEMO, {}),
    "learning rate 2e-4, as published": (replace(DEMO, generator_rate=2e-4), {}),
    "32 epochs": (replace(DEMO, pretraining_epochs=32), {}),
    "256 features (32 base filters)": (replace(DEMO, base_filters=32), {}),
    "leaky ReLU at the bottleneck": (DEMO, {"bottleneck": LEAKY}),
    "batch normalisation before the ReLU": (DEMO, {"bottleneck": NormalisedReLU}),
    "no skip connections": (DEMO, {"skips": False}),
}


def describe(features):
    """Return how much of a bottleneck is in use.

    Parameters
    ----------
    features : array (cells, features)

    Returns
    -------
    dict of float
        Shares of the values that are exactly 0, of the features that are 0 in all cells, and of
        those above 0 in at least half of the cells; the participation ratio of the standardised
        features.
    """
    zero = features == 0
    return {
        "exactly 0": float(zero.mean()),
        "0 in all cells": float(zero.all(axis=0).mean()),
        "above 0 in half of the cells": float(np.mean((~zero).mean(axis=0) >= 0.5)),
        "participation ratio": participation_ratio(features),
    }


def exchange_error(generator, brightfield, seed=0):
    """Return how much the image changes if each cell gets the bottleneck features of another.

    Parameters
    ----------
    generator : keras.Model
        With skip connections.
    brightfield : array (cells, size, size, channels)

    Returns
    -------
    dict of float
        Mean absolute change of the image, divided by that between two cells.
    """
    split = split_generator(generator)
    code = split.encode(brightfield)
    image = split.decode(code)
    order = np.random.default_rng(seed).permutation(len(brightfield))
    exchanged = split.decode(exchange_paths(code, order)["bottleneck"])
    change, between = (np.abs(other - image).mean() for other in (exchanged, image[order]))
    return {"image changed by another cell's bottleneck": change / between}


def score(generator, cells, truth, skips):
    """Return the row of a variant: see `describe`, `exchange_error` and the probes."""
    image, features = generator.predict(cells.brightfield, batch_size=100, verbose=0)
    row = describe(features)
    row |= exchange_error(generator, cells.brightfield) if skips else {}
    row["MAE with the truth (rad)"] = float(np.abs(image - cells.truth).mean())
    results = score_results(features, cells.labels, 0, 0)
    row |= {result.measure: result.accuracy for result in results}
    return row | {"biology": biology_kept(features, truth, cells.labels).mean()}


def main():
    """Train and score all variants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    data = demo_dataset(options.out)
    train = load_cells(data, "Train", DEMO_CELLS["lung"], image_size=64)
    valid = load_cells(data, "Valid", image_size=64)
    test = load_cells(data, "Test", image_size=64, with_truth=True)
    truth = measure_images(test.truth, test)
    rows = {}
    for name in options.variants:
        preset, variant = VARIANTS[name]
        print(f"\n{name}", flush=True)
        with patch("cytomad_lib.runs.build_generator", partial(build_variant, **variant)):
            folder = options.out / "".join(c if c.isalnum() else "_" for c in name)
            run = Run.create(folder, preset, train, "lung", seed=0)
            if preset.pretraining_epochs:
                pretrain(run, train, valid, verbose=2)
                generator = run.generator("pretraining")
            else:
                generator = run.new_generator()
        rows[name] = score(generator, test, truth, variant.get("skips", True))
        print(pd.Series(rows[name]).round(3).to_string(), flush=True)
        table = pd.DataFrame.from_dict(rows, orient="index").round(4)
        write_table(table, options.out / "bottleneck.csv", index_label="variant")
    print(table.T.to_string())


if __name__ == "__main__":
    main()
