"""The command line: `cytomad COMMAND`, or `python -m cytomad_lib COMMAND`.

It parses, calls `cytomad_lib.workflow` and prints; `--help` lists the commands.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cytomad_lib.config import LARGEST_SEED, find_preset
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.stopping import Stopped, stop_workers, stopped_by_signals

app = typer.Typer(
    help="CytoMAD teaching kit: brightfield to quantitative phase, without batch effects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _path(text):
    """Refuse an empty path, which would mean the folder in which the command is given."""
    if not text:
        raise typer.BadParameter("It is empty. Expected a path; a dot is the folder you are in.")
    return Path(text)


def _split(name):
    if name not in (None, "Train", "Valid", "Test"):
        raise typer.BadParameter(f"{name!r} is none. Expected Train, Valid or Test.")
    return name


def _option(kind, text, **settings):
    """Return the type of an option, with its text in `--help`."""
    return Annotated[kind, typer.Option(help=text, **settings)]


def _flag(name, text):
    """Return the type of an option that is on where it is named, and has no opposite."""
    return Annotated[bool, typer.Option(name, help=text)]


PATH = {"parser": _path, "metavar": "PATH"}

DATA_HELP = "A dataset's folder, or the one above it; lung or drug: the simulated ones."
Data = Annotated[Path, typer.Argument(help=DATA_HELP, parser=_path, metavar="DATA")]
Out = _option(Path, "Folder for the results.", **PATH)
Seed = _option(int, "Seed of everything random.", min=0, max=LARGEST_SEED)
Split = _option(str | None, "Train, Valid or Test.", callback=_split)
Model = Annotated[
    Path, typer.Argument(help="Folder of a training run, or an .h5 of the published programs.")
]
Stage = _option(
    str | None,
    "Of a run: pretraining, published or conditional; by default the last of these that it has.",
)
Preset = _option(str, "published, demo, study or workshop.")
Recipe = _option(
    str,
    "Of batch removal: published, conditional, both, or none (pretraining alone, for which one "
    "batch and one class will do).",
)
Cells = _option(int | None, "Training cells per group; all by default.", min=1)
ImageProbe = _option(bool, "Probe the images, too, by a CNN and by pixels: half a minute each.")
Method = _option(
    list[Path] | None,
    "A Python file with a method of your own, scored beside the others; repeatable.",
    **PATH | {"metavar": "FILE"},
)


@app.command()
def demo(
    out: Out,
    data: _option(Path | None, "Another dataset.", **PATH) = None,
    dataset: _option(str, "Which of the simulated ones: lung or drug.") = "lung",
    seed: Seed = 0,
):
    """Train, predict and evaluate on a demonstration dataset (minutes on two CPU cores)."""
    from cytomad_lib import workflow

    data = data and _data(data, out)
    _show(workflow.demo(out, data, seed=seed, verbose=_verbosity(), dataset=dataset), out)


@app.command()
def simulate(
    out: Out,
    layout: _option(str, "lung or drug.") = "lung",
    demo: _option(bool, "Exactly the committed demonstration set.") = False,
    image_size: _option(int, "Pixels along each side.") = 64,
    train: _option(int, "Training cells per group.", min=0) = 60,
    valid: _option(int, "Validation cells per group.", min=0) = 10,
    test: _option(int, "Test cells per group.", min=0) = 30,
    batch_strength: _option(float, "0: no batch effect; 1: usual.") = 1.0,
    overwrite: _option(bool, "Replace an earlier simulation.") = False,
    seed: Seed = 0,
):
    """Simulate a dataset, with its batch-free truth, in the published layout."""
    from cytomad_lib.simulation.write import simulate_dataset
    from cytomad_lib.workflow import find_demo

    if demo:
        settings = find_demo(layout)
    else:
        counts = {"Train": train, "Valid": valid, "Test": test}
        settings = {"layout": layout, "image_size": image_size, "cells_per_group": counts}
        settings |= {"batch_strength": batch_strength, "seed": seed}
    print(f"Simulated dataset: {simulate_dataset(out, **settings, overwrite=overwrite)}")


@app.command()
def check(data: Data):
    """Say whether a folder is a valid dataset, what is in it, and what is wrong."""
    from cytomad_lib.data.check import check_dataset

    report = check_dataset(_data(data), progress=_verbosity() == 1)
    print(report)
    if not report.ok:
        raise CytomadError(f"{report.root} has {len(report.problems)} problem(s), listed above.")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="lung, drug, jurkat or phenotypes.")],
    out: _option(Path, "Folder in which the dataset's folder is made.", **PATH),
    split: _option(str | None, "Train, Valid or Test; all by default.", callback=_split) = None,
    groups: _option(
        list[str] | None,
        "Only this group, such as Batch1, Batch1/H69, B1/Docetaxel/D3, Experiment_1/G1 or "
        "gemcitabine; repeatable.",
    ) = None,
    base_url: _option(str | None, "A mirror of the files.") = None,
    workers: _option(int, "Files at the same time.", min=1, max=16) = 4,
    raw: _flag("--raw", "Keep the montages of jurkat.") = False,
):
    """Fetch measured data, each file verified; the same command resumes an interrupted download."""
    from cytomad_lib.data.download import download_dataset

    options = split, groups or None, base_url, workers, _verbosity() == 1, print, raw
    print(f"Published dataset: {download_dataset(name, out, *options)}")


@app.command()
def subsample(
    data: Data,
    out: Out,
    cells: _option(str, "Cells per group: of Train, Valid and Test, such as 110,10,30."),
    size: _option(int | None, "Pixels along each side.") = None,
):
    """Copy a dataset in a published layout with fewer cells and smaller images."""
    from cytomad_lib.data.errors import DatasetError
    from cytomad_lib.data.subsample import subsample as copy

    numbers = cells.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise DatasetError(f"--cells is {cells!r}. Expected three numbers, such as 110,10,30.")
    counts = dict(zip(("Train", "Valid", "Test"), map(int, numbers), strict=True))
    print(f"Smaller dataset: {copy(data, out, counts, size, _verbosity() == 1)}")


@app.command()
def train(
    data: Data,
    out: Out,
    preset: Preset = "demo",
    cells: Cells = None,
    recipe: Recipe = "both",
    seed: Seed = 0,
    from_disk: _flag("--from-disk", "For cells that do not fit into memory (v7.3).") = False,
    devices: _option(
        int,
        "GPUs that share each minibatch (published recipe, TensorFlow); without a GPU, parts of "
        "the CPU.",
        min=1,
    ) = 1,
    updates: _option(
        str,
        "Of generator and discriminator: alternating, as published, or simultaneous, which is "
        "faster.",
    ) = "alternating",
    precision: _option(str, "float32, or for GPUs mixed_float16 or mixed_bfloat16.") = "float32",
    log: _option(str | None, "tensorboard: also write the losses for it.") = None,
):
    """Train on a dataset; the same command resumes an interrupted training."""
    from dataclasses import replace

    from cytomad_lib import workflow

    chosen = replace(find_preset(preset), updates=updates, precision=precision)
    settings = chosen, seed, cells, _verbosity(), _recipes(recipe)
    options = {"from_disk": from_disk, "devices": devices, "log": log}
    run = workflow.train(_data(data, out), out, *settings, **options)
    print(f"\nTrained: {', '.join(run.stages())}. The run is in {run.folder}")


@app.command()
def predict(
    model: Model,
    data: Data,
    out: Out,
    split: Split = "Test",
    stage: Stage = None,
    mode: _option(
        str, "running: each cell by itself. published, batch: one group at a time."
    ) = "running",
):
    """Predict phase images and bottleneck features of a split, and write them."""
    from cytomad_lib import workflow
    from cytomad_lib.runs import Run

    options = split, out, _verbosity() == 1, mode
    data = _data(data, out)
    if model.is_file():
        prediction, by = workflow.predict_by_file(model, data, *options), model.name
    else:
        run = Run.open(model)
        by = stage or run.last_stage()
        prediction = workflow.predict_split(run, data, split, by, *options[1:])
    print(f"Predicted {len(prediction)} cells into {out}, by {by}")
    _note_missing()


@app.command()
def export(
    model: Model,
    out: _option(Path, "The file.", **PATH | {"metavar": "FILE"}),
    kind: Annotated[
        str,
        typer.Option("--format", help="onnx, or bioimageio: a package with documentation and test"),
    ] = "onnx",
    stage: Stage = None,
    data: _option(Path | None, "Of a package: its test cells.", **PATH) = None,
    author: _option(list[str] | None, "Of a package: who trained the model; repeatable.") = None,
    licence: _option(str, "Of a package, as SPDX names it.") = "GPL-3.0-or-later",
):
    """Write a generator for other programs, which run it without Keras."""
    from cytomad_lib import workflow

    data = data and _data(data, out)
    print(f"Exported: {workflow.export(model, out, kind, stage, data, author or (), licence)}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    data: Data,
    out: Out,
    split: Split = "Test",
    image_probe: ImageProbe = True,
    seed: Seed = 0,
    method: Method = None,
):
    """Score a run on a split, by probes trained after the generator."""
    from cytomad_lib.evaluation.evaluate import evaluate
    from cytomad_lib.runs import Run

    data = _data(data, out)
    options = {"image_probe": image_probe, "methods": _methods(method)}
    _show(evaluate(Run.open(run), data, split, out, seed, True, **options), out)


@app.command()
def compare(
    data: Data,
    out: Out,
    seeds: _option(str, "Whole numbers, with commas between.") = "0,1,2",
    preset: Preset = "study",
    cells: Cells = None,
    recipe: Recipe = "both",
    image_probe: ImageProbe = True,
    method: Method = None,
):
    """Train and evaluate from several seeds; resumes when called again."""
    from cytomad_lib.evaluation import compare

    methods = _methods(method)  # first: a mistake in a file is found before hours of training
    settings = find_preset(preset), _seeds(seeds), _recipes(recipe), cells, _verbosity()
    found = compare.compare(_data(data, out), out, *settings, image_probe, methods)
    print(f"\n{found.summary()}\n\nTable: {out / compare.TABLE}\nReport: {found.page}")


@app.command()
def leave_batch_out(
    data: Data,
    out: Out,
    batch: _option(str, "The batch left out, such as Batch3."),
    preset: Preset = "study",
    cells: Cells = None,
    recipe: Recipe = "both",
    seed: Seed = 0,
):
    """Train without one batch, then tell the classes apart in it."""
    from cytomad_lib.evaluation import compare
    from cytomad_lib.evaluation.tables import as_text

    settings = find_preset(preset), _recipes(recipe), seed, cells, _verbosity()
    table = compare.leave_batch_out(_data(data, out), out, batch, *settings)
    shown = table[["method", "accuracy", "chance", "null_95", "n_cells", "n_not_counted"]]
    print(f"\nClass accuracy in {batch}, without which generator and probe were trained")
    print(as_text(shown.set_index("method")))
    print(f"\nTable: {out / compare.LEFT_OUT}")


@app.command()
def course(
    out: Annotated[
        Path | None, typer.Option(help="Folder for them.", parser=_path, metavar="PATH")
    ] = None,
    student: _flag("--student", "Copies without solutions.") = False,
    slides: _flag("--slides", "Slides for a browser (HTML).") = False,
    site: _flag("--site", "A site to read (HTML).") = False,
    add: Annotated[
        Path | None,
        typer.Option(help="Folder with more files for the site.", parser=_path, metavar="PATH"),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option(help="Write the kit's address on GitHub everywhere; none removes it."),
    ] = None,
):
    """Write the notebooks for a class: student copies and slides (both by default), or a site."""
    from cytomad_lib import handouts

    print("\n".join(handouts.write(out, student, slides, site, add, repository)))


@app.command()
def bench(
    out: Out = Path("results/bench"),
    preset: _option(str, "published, demo or both.") = "both",
    quick: _option(bool, "A first look: less work, fewer times.") = False,
    gpu: _option(bool, "Measure our side on the GPU.") = False,
    rounds: _option(
        str, "A whole round of removal at: published (hours), demo, both or none."
    ) = "demo",
):
    """Measure how fast all this is here, beside the same work done the published way."""
    benches = _benchmarks()

    presets = benches.find_presets(preset)
    of_rounds = () if rounds == "none" else [p.name for p in benches.find_presets(rounds)]
    result = benches.bench(presets, quick, gpu, of_rounds, verbose=1)
    paths = result.write(out)
    print(f"\n{result.summary()}\n\nTables: {', '.join(map(str, paths))}")


@app.command()
def try_page(out: Out):
    """Write a page on which a browser runs the networks; needs npm and the extra `export`."""
    from cytomad_lib.try_page import write_page

    write_page(out / "try")
    print(f"Page: {out / 'try' / 'index.html'}, for a web server:")
    print(f"  python -m http.server --directory {out / 'try'}")


def main():
    """Run the command line; a user's error ends it with a message and exit code 1."""
    try:
        with stopped_by_signals():
            app()
    except (CytomadError, OSError) as error:
        sys.exit(f"Error: {error}")
    except MemoryError as error:
        sys.exit(
            f"Error: There is too little memory ({error or 'none left'}). Expected room for the "
            "images and the networks; take fewer or smaller ones, or train with --from-disk."
        )
    except Stopped as end:
        print(f"\n{end}", file=sys.stderr)
        raise
    finally:
        stop_workers()


def _show(evaluation, out):
    print(f"\n{evaluation.summary()}\n\nFigures:")
    for path in evaluation.figures:
        print(f"  {path}")
    print(f"Tables: {out / 'scores.csv'}, {out / 'image_scores.csv'} and beside them")
    print(f"Report: {out / 'report.html'}")
    _note_missing()


def _note_missing():
    from cytomad_lib.evaluation.exchange import missing_note

    if note := missing_note():
        print(note)


def _data(folder, out=None):
    """Return where the dataset is, for results in `out`; the library answers `lung` and `drug`."""
    from cytomad_lib.workflow import find_data

    return find_data(folder, out)


def _benchmarks():
    """Import the benchmarks, which are in the repository beside the library."""
    import importlib

    root = Path(__file__).parents[1]
    if not (root / "benchmarks" / "bench").is_dir():
        raise CytomadError(
            "The benchmarks are part of the repository, not of the installed package. Expected a "
            "folder benchmarks/ beside the library; run the command in a clone of the repository."
        )
    sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.bench.measuring")


def _methods(paths):
    """Return the methods in the files of `--method`."""
    from cytomad_lib.evaluation.baselines import load_method

    return [load_method(path) for path in paths or ()]


def _recipes(name):
    """Return the recipes meant by `--recipe`; the library answers unknown names."""
    from cytomad_lib.runs import RECIPES

    return {"both": RECIPES, "none": ()}.get(name, (name,))


def _seeds(text):
    """Return the numbers of `--seeds`."""
    from cytomad_lib.runs import check_seed

    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise CytomadError(
            f"The seeds are {text!r}. Expected whole numbers with commas between, such as 0,1,2."
        )
    seeds = tuple(int(part) for part in parts)
    for seed in seeds:
        check_seed(seed)
    return seeds


def _verbosity():
    """Progress bars on a terminal; a line per epoch in a log file."""
    return 1 if sys.stdout.isatty() else 2
