"""The published size on a GPU: checks, speed, and a real training, in one command.

    KERAS_BACKEND=torch python -m benchmarks.gpu --out results/gpu --minutes 9

It needs PyTorch and what the library imports, without TensorFlow. Cells are simulated on the spot.
What such a machine lacks can be carried along, unpacked, in a folder of `PYTHONPATH`:
`pip install --target vendor --no-deps keras namex optree`.

Parts, each of which is written to `gpu.json` when it ends, and left out when it is there already:

* `machine`: rates of matrix products;
* `agreement`: five steps of pretraining and removal, beside the CPU's;
* `bfloat16`: the loss after the same steps in half and in full precision;
* `speed`: training steps and inference, by minibatch and precision, beside the published way;
* `training`: pretraining, classifiers and both recipes of batch removal for the time that is left;
* `compiled`: the step once more, compiled by PyTorch, if five minutes are left.

A second call with the same folder goes on: `--parts compiled` is the rest of a first call.

`gpu.csv` holds the speeds, `test_<stage>.npz` images and features of Test cells, and two PNGs the
speeds, losses and images. The table is printed last. `--tiny` does the same in miniature.
"""

import argparse
import gc
import json
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import matplotlib
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from benchmarks import published_way
from benchmarks.bench.cells import make_cells
from benchmarks.bench.machine import accelerator, accelerator_peak
from benchmarks.bench.operations import count_operations, step_operations
from cytomad_lib.config import DEMO, PUBLISHED, Conditional
from cytomad_lib.data.cells import CellImages
from cytomad_lib.data.files import write_table, write_text
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.networks import build_discriminator, build_generator, computing_in
from cytomad_lib.prediction import predict
from cytomad_lib.runs import Run
from cytomad_lib.simulation.acquisition import simulate_cells
from cytomad_lib.training.batch_removal import BatchRemoval, Classifiers
from cytomad_lib.training.minibatches import Minibatches
from cytomad_lib.training.pix2pix import Pix2Pix
from cytomad_lib.training.recipes import fit_classifiers, pretrain, remove_batches
from cytomad_lib.training.steps import WARM_UP, Recording, without_gradients

matplotlib.use("Agg")

KINDS = {"pretraining": Pix2Pix, "removal": BatchRemoval}
PRECISIONS = {"float32": "float32", "tf32": "float32", "bfloat16": "mixed_bfloat16"}
TINY = replace(
    DEMO,
    name="tiny",
    image_size=16,
    base_filters=4,
    batch_size=6,
    classifier_batch_size=12,
    classifier_epochs=1,
    refit_epochs=1,
    conditional=Conditional(
        image_epochs=1,
        feature_epochs=1,
        image_cells=4,
        feature_cells=8,
        replay_buffer=24,
        replay_sample=24,
        alignment_steps=2,
    ),
)


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Parameters
    ----------
    preset : Preset
    speeds : tuple of (str, int, str)
        Work, cells per minibatch and precision of each measured step.
    inference : tuple of (int, str)
        Cells at a time and precision.
    repeats, steps : int
        Measurements of each, and steps in one of them.
    bfloat16_steps : int
        After which the losses of both precisions are compared.
    beside : str
        Precision in which the published way is measured.
    product : int
        Rows and columns of the matrices whose product measures the machine.
    cells : dict of int
        Cells per group by split, of 21 groups, that are trained on.
    compiled : tuple of (int, str)
        Cells per minibatch and precision of the compiled steps.
    """

    preset: object
    speeds: tuple
    inference: tuple
    repeats: int
    steps: int
    bfloat16_steps: int
    beside: str
    product: int
    cells: dict
    compiled: tuple


MINIBATCHES = (10, 64, 256)
FULL = Plan(
    PUBLISHED,
    # Without TF32, a minibatch of 256 takes longer than the time that there is.
    tuple(
        (work, n, kind)
        for n in MINIBATCHES
        for work in KINDS
        for kind in PRECISIONS
        if n < 256 or kind != "float32"
    ),
    tuple((n, kind) for n in MINIBATCHES for kind in PRECISIONS),
    repeats=5,
    steps=10,
    bfloat16_steps=200,
    beside="tf32",
    product=8192,
    cells={"Train": 500, "Valid": 20, "Test": 20},
    compiled=((10, "tf32"), (64, "bfloat16")),
)
SMALL = Plan(
    TINY,
    (("pretraining", 6, "float32"), ("removal", 6, "float32")),
    ((6, "float32"), (6, "bfloat16")),
    repeats=2,
    steps=2,
    bfloat16_steps=20,
    beside="float32",
    product=256,
    cells={"Train": 2, "Valid": 1, "Test": 1},
    compiled=(),
)


# --- What is measured ------------------------------------------------------------------------


@contextmanager
def computing(precision):
    """Let PyTorch and new networks compute in one of `PRECISIONS`."""
    fast = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.benchmark = True
    with computing_in(PRECISIONS[precision]):
        yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def networks(preset, dropout=0.5):
    """Build generator and discriminator."""
    sizes = preset.image_network
    return build_generator(**sizes, seed=0, dropout=dropout), build_discriminator(**sizes, seed=1)


def classifiers(preset):
    """Build the seven classifiers."""
    return Classifiers.build(len(LUNG.batches), len(LUNG.classes), preset, seed=2)


def build(work, preset, dropout=0.5):
    """Build and compile the model of a kind of work."""
    judges = [classifiers(preset)] if work == "removal" else []
    model = KINDS[work](*networks(preset, dropout), *judges, preset)
    model.compile()
    return model


def minibatches(preset, size, n):
    """Make n minibatches of tensors on the device."""
    groups = len(LUNG.groups)
    cells = make_cells(preset.image_size, -(-size * n // groups), None)
    feed = Minibatches.of_cells(cells, size, seed=0)
    return [keras.tree.map_structure(keras.ops.convert_to_tensor, feed[i]) for i in range(n)]


def wait():
    """Wait until the GPU has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(run, times, repeats):
    """Return the median time of one call; each measurement is of several."""
    found = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        for _ in range(times):
            run()
        wait()
        found.append((time.perf_counter() - start) / times)
    return float(np.median(found))


def machine(plan, folder):
    """Measure matrix products, in operations per second."""
    found = {
        "device": accelerator() or "CPU",
        "torch": torch.__version__,
        "keras": keras.__version__,
    }
    shape = (plan.product, plan.product)
    for precision, kind in (("float32", "float32"), ("tf32", "float32"), ("bfloat16", "bfloat16")):
        with computing(precision):
            pair = [keras.random.normal(shape, dtype=kind, seed=seed) for seed in (0, 1)]
            product = partial(torch.matmul, *pair)
            product()
            seconds = seconds_of(product, 3, plan.repeats)
        found[f"{precision}_product"] = 2 * plan.product**3 / seconds
    return found


def agreement(plan, folder):
    """Compare five steps, as they are trained here, with ordinary ones on the CPU."""
    steps = 5
    feed = minibatches(plan.preset, plan.preset.batch_size, steps)
    found = {}
    for work in KINDS:
        with computing("float32"):
            with keras.device("cpu"):
                reference = build(work, plan.preset, dropout=0.0)
                start = [np.array(weight) for weight in reference.get_weights()]
                wanted = _losses(reference.train_step, [_to(batch, "cpu") for batch in feed])
            model = build(work, plan.preset, dropout=0.0)
            model.set_weights(start)
            recording = Recording(model.train_step)
            losses = _losses(lambda batch, run=recording: run([batch]), feed)
        off = {name: np.abs(losses[name] / wanted[name] - 1).max() for name in wanted}
        worst = max(off, key=off.get)
        found[work] = {"worst": worst, "relative_difference": float(off[worst])}
    return found


def bfloat16(plan, folder):
    """Compare the generator's loss after the same steps in half and in full precision."""
    steps = plan.bfloat16_steps
    feed = minibatches(plan.preset, plan.preset.batch_size, 20)
    found = {}
    for precision in ("float32", "bfloat16"):
        with computing(precision):
            model = build("pretraining", plan.preset, dropout=0.0)
            step = Recording(model.train_step)
            for number in range(steps):
                if number == steps - steps // 4:
                    model.reset_metrics()  # they hold the mean since then
                logs = step([feed[number % len(feed)]])
            found[precision] = float(logs["loss"])
    return found | {"relative_difference": abs(found["bfloat16"] / found["float32"] - 1)}


def speed(plan, folder):
    """Time steps and inference; a list of rows."""
    rows = []
    for work, size, precision in plan.speeds:
        preset = replace(plan.preset, batch_size=size)
        with computing(precision):
            rows.append(_step_speed(plan, preset, work, precision))
            if size == plan.preset.batch_size and precision == plan.beside:
                rows.append(_published_speed(plan, preset, work, precision))
    for size, precision in plan.inference:
        with computing(precision):
            rows.append(_inference_speed(plan, size, precision))
    return rows


def compiled(plan, folder):
    """Time steps that PyTorch's compiler made."""
    rows = []
    for size, precision in plan.compiled:
        with computing(precision):
            preset = replace(plan.preset, batch_size=size)
            rows.append(_step_speed(plan, preset, "pretraining", precision, compile=True))
    return rows


def _step_speed(plan, preset, work, precision, compile=False):
    accelerator_peak()
    model, (batch,) = build(work, preset), minibatches(preset, preset.batch_size, 1)
    step, start = Recording(model.train_step, compile), time.perf_counter()
    for _ in range(WARM_UP + 2):
        step([batch])
    wait()
    begun = time.perf_counter() - start
    judges = []
    if work == "removal":
        judges = [model.class_mlp, model.class_cnn, model.batch_cnn, *model.batch_mlps]
    operations = step_operations(model.generator, model.discriminator, judges)
    way = "compiled" if compile else "ours"
    row = _row(work, preset.batch_size, precision, way, operations)
    return row(seconds_of(partial(step, [batch]), plan.steps, plan.repeats), begun)


def _published_speed(plan, preset, work, precision):
    accelerator_peak()
    plain = [published_way.plain(network) for network in networks(preset)]
    judges = [classifiers(preset)] if work == "removal" else []
    kinds = {"pretraining": published_way.Pretraining, "removal": published_way.BatchRemoval}
    way = kinds[work](*plain, *judges, preset)
    cells = make_cells(preset.image_size, -(-preset.batch_size // len(LUNG.groups)), None)
    start = time.perf_counter()
    for _ in range(2):
        way.step(cells)
    row = _row(work, preset.batch_size, precision, "published way", None)
    begun = time.perf_counter() - start
    return row(seconds_of(partial(way.step, cells), max(1, plan.steps // 2), plan.repeats), begun)


def _inference_speed(plan, size, precision):
    accelerator_peak()
    (generator, _), ((images, _),) = networks(plan.preset), minibatches(plan.preset, size, 1)

    @without_gradients()
    def run():
        generator(images, training=False)

    run()
    row = _row("inference", size, precision, "ours", count_operations(generator))
    return row(seconds_of(run, plan.steps, plan.repeats))


def _row(work, size, precision, way, operations):
    def row(seconds, begun=None):
        return {
            "work": work,
            "minibatch": size,
            "precision": precision,
            "way": way,
            "images_per_second": size / seconds,
            "ms": 1000 * seconds,
            "operations_per_second": operations and operations * size / seconds,
            "peak_memory_gb": (accelerator_peak() or 0) / 1e9 or None,
            "first_steps_s": begun,
        }

    return row


def _losses(step, feed):
    found = {}
    for batch in feed:
        for name, value in step(batch).items():
            found.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def _to(batch, device):
    return keras.tree.map_structure(lambda values: values.to(device), batch)


# --- A real training -------------------------------------------------------------------------


def training(plan, folder, seconds, step_seconds):
    """Train all stages for about so many seconds; write predictions of the Test cells."""
    start = time.perf_counter()
    cells = {split: simulate_split(plan, split, n) for split, n in plan.cells.items()}
    train, valid = cells["Train"], cells["Valid"]
    found = {"cells": len(train), "simulating_s": time.perf_counter() - start}
    preset = _fitting(plan, len(train), seconds - found["simulating_s"], step_seconds)
    run = Run.create(folder / "run", preset, train, "lung", seed=0)
    stages = {
        "pretraining": partial(pretrain, run, train, valid),
        "classifiers": partial(fit_classifiers, run, train, valid),
        "published": partial(remove_batches, run, train, valid, recipe="published"),
        "conditional": partial(remove_batches, run, train, valid, recipe="conditional"),
    }
    for stage, train_stage in stages.items():
        begin = time.perf_counter()
        history = train_stage(verbose=0)
        found[stage] = {"seconds": time.perf_counter() - begin}
        if stage != "classifiers":
            _write_predictions(folder, run, stage, cells["Test"])
            found[stage]["losses"] = {k: v.tolist() for k, v in history.items()}
        print(f"training: {stage} took {found[stage]['seconds']:.0f} s", flush=True)
    return found


def simulate_split(plan, split, n):
    """Simulate n cells of every group, the groups side by side on all cores."""
    made = Parallel(n_jobs=-1)(
        delayed(simulate_cells)(g.class_name, n, g.batch, 0, plan.preset.image_size, split)
        for g in LUNG.groups
    )
    labels = {
        "batch": pd.Categorical(np.repeat([g.batch for g in LUNG.groups], n), LUNG.batches),
        "class_name": pd.Categorical(
            np.repeat([g.class_name for g in LUNG.groups], n), LUNG.classes
        ),
        "cell": np.tile(np.arange(n), len(LUNG.groups)),
    }
    images = [
        np.concatenate([getattr(group, name) for group in made])[..., None].astype(np.float32)
        for name in ("brightfield", "qpi")
    ]
    pixel = LUNG.field_of_view_um / plan.preset.image_size
    return CellImages(*images, pd.DataFrame(labels), pixel)


def _fitting(plan, n, seconds, step_seconds):
    """Return the preset with as many epochs as fit: half of the time is for the pretraining."""
    if plan.preset is TINY:
        return replace(TINY, pretraining_epochs=1, removal_epochs=1)
    epoch = 1.5 * step_seconds * (n // plan.preset.batch_size)
    epochs = max(2, int(seconds / 2 / epoch))
    recipe = replace(
        plan.preset.conditional,
        image_epochs=max(1, epochs // 8),
        feature_epochs=max(1, epochs // 8),
    )
    return replace(
        plan.preset,
        name="gpu",
        pretraining_epochs=epochs,
        classifier_epochs=max(2, epochs // 4),
        removal_epochs=max(1, epochs // 4),
        conditional=recipe,
    )


def _write_predictions(folder, run, stage, cells):
    made = predict(run.generator(stage), cells)
    np.savez_compressed(
        folder / f"test_{stage}.npz",
        images=made.images.astype(np.float16),
        features=made.features,
        batch=made.labels["batch"].to_numpy(str),
        class_name=made.labels["class_name"].to_numpy(str),
        cell=made.labels["cell"],
    )


# --- Files and the table ---------------------------------------------------------------------


def table(results):
    """Return what was found as text."""
    lines = [f"{results['machine']['device']}, PyTorch {results['machine']['torch']}"]
    for work, found in results.get("agreement", {}).items():
        off = found["relative_difference"]
        lines.append(f"five steps of {work}: within {off:.1e} of the CPU ({found['worst']})")
    if "bfloat16" in results:
        off = results["bfloat16"]["relative_difference"]
        lines.append(f"bfloat16: loss {off:.1%} from float32")
    rows = pd.DataFrame(results.get("speed", []) + results.get("compiled", []))
    if len(rows):
        lines += ["", rows.round(2).to_string(index=False)]
    for stage, found in results.get("training", {}).items():
        if isinstance(found, dict):
            lines.append(f"{stage}: {found['seconds']:.0f} s")
    return "\n".join(lines)


def draw(results, folder):
    """Draw speeds, and the losses of the training."""
    from matplotlib import pyplot as plt

    rows = pd.DataFrame(results.get("speed", []) + results.get("compiled", []))
    names = rows[["work", "minibatch", "precision", "way"]].astype(str).agg(", ".join, axis=1)
    figure, ax = plt.subplots(figsize=(9, 1 + 0.25 * len(rows)), layout="constrained")
    ax.barh(names, rows["images_per_second"])
    ax.set(xlabel="images per second", xscale="log")
    ax.invert_yaxis()
    figure.savefig(folder / "speed.png", dpi=120)
    trained = results.get("training", {})
    stages = {k: trained[k] for k in ("pretraining", "published", "conditional") if k in trained}
    if stages:
        figure, axes = plt.subplots(
            1, len(stages), figsize=(4 * len(stages), 3.2), layout="constrained", squeeze=False
        )
        for ax, (stage, found) in zip(axes[0], stages.items(), strict=True):
            for name in ("loss", "val_loss"):
                ax.plot(found["losses"]["epoch"], found["losses"][name], ".-", label=name)
            ax.set(title=stage, xlabel="epoch", yscale="log")
            ax.legend()
        figure.savefig(folder / "training.png", dpi=120)
    plt.close("all")


# The least time, in seconds, that a part is begun with. The compiler cannot be interrupted.
PARTS = {machine: 0, agreement: 60, bfloat16: 60, speed: 120, training: 60, compiled: 300}


def main(arguments=None):
    """Run the parts that are not done yet, as far as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "results/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--tiny", action="store_true", help="in miniature, on any machine")
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    asked = parser.parse_args(arguments)
    end = time.perf_counter() + 60 * asked.minutes
    plan, folder = SMALL if asked.tiny else FULL, Path(asked.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part, least in PARTS.items():
        left, name = end - time.perf_counter(), part.__name__
        if name not in asked.parts or name in results or (left < least and not asked.tiny):
            continue
        options = {}
        if part is training:
            steps = [row["ms"] for row in results["speed"] if row["way"] == "ours"]
            options = {"seconds": left - 30, "step_seconds": steps[1 % len(steps)] / 1000}
        print(f"{name}, {left:.0f} s left", flush=True)
        with computing("tf32") if part is training else nullcontext():
            results[name] = part(plan, folder, **options)
        write_text(path, json.dumps(results, indent=1))
    rows = pd.DataFrame(results.get("speed", []) + results.get("compiled", []))
    write_table(rows, folder / "gpu.csv", index=False)
    draw(results, folder)
    print(table(results))


if __name__ == "__main__":
    main()
