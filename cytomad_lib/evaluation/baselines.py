"""The baselines: features that can be had without batch removal inside the generator.

A *method* is a Python file or module with these names:

- `NEEDS`: what must be known of a cell to transform it; a key of `baselines.NEEDS`.
- `transform(fitted, features, images, labels)`: returns the new features, (cells, any number).
- `TRAINS_ON` and `fit(features, images, labels, seed)`, if the method is fitted to training cells:
  what `fit` gets of them, any of `TRAINING`, and the function that returns `fitted`. Without them,
  `transform` gets the seed in its place.

`features` are those of the pretrained generator, (cells, features); `images` is an `Images`;
`labels` is a table with the columns `batch` and `class_name`. A method gets only what it declares:
other labels are not in the table, other images are None, and the batch-free truth is never given.
The new features of a cell may depend on other cells only if `NEEDS` says so. `NAME` is optional.

The baselines in `evaluation.methods` have this form; `load_method` reads one more from a file.

Methods that need the class of the cells are marked `oracle` and are no competitors. They shift each
class on its own, which marks the class, so their class accuracy can exceed that of the truth.

Class and batch are confounded here: each lung cell line was measured in 3 of the 7 batches. So
batches differ also because they hold different classes. A correction that ignores the class removes
differences between classes, too. That is why most corrections have two versions.

`null_control` tests every method that uses batches on random halves of the same cells. It finds the
methods that write a batch in; `components` explains how that happens.

A correction that makes the batches' means equal over all test cells puts a probe's training and
test folds on opposite sides of that mean. So batch accuracy can fall *below* chance. Read that as
"nothing linear left"; it is not better than chance.

Example
-------
>>> import numpy as np, pandas as pd
>>> labels = pd.DataFrame({"batch": ["B1", "B2"] * 20, "class_name": ["H69"] * 20 + ["H520"] * 20})
>>> features = np.random.default_rng(0).normal(size=(40, 5)) + (labels[["batch"]] == "B2").values
>>> baselines = baseline_features(features, labels, features, labels)
>>> baselines["LEACE"].oracle, baselines["ComBat with class"].oracle
(False, True)
>>> found = baselines["LEACE"].features
>>> bool(abs(found[::2].mean(axis=0) - found[1::2].mean(axis=0)).max() < 1e-5)
True
"""

from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd

from cytomad_lib.data.errors import CytomadError
from cytomad_lib.evaluation.probes import within_class_batch_accuracy
from cytomad_lib.evaluation.tasks import ProbeError, check_features, need_two

# What a method may need to know of the cells that it transforms; what it then gets beside features
# and brightfield.
NEEDS = {
    "nothing": (),
    "batch": ("batch",),
    "many cells of the batch": ("batch",),
    "class": ("batch", "class_name"),
    "phase microscope": ("qpi",),
}
TRAINING = ("features", "brightfield", "qpi", "batch", "class_name")
ALONE = 5  # cells that are transformed on their own, to see whether the others matter
CONTROL_SPLITS = 3
CONTROL_PROBES = ("whitened",)  # the fastest probe that finds such a batch
OF_FEATURES = (
    "standardise",
    "standardise_within_class",
    "harmony",
    "combat",
    "combat_with_class",
    "leace",
    "leace_within_class",
    "sphering",
)
OF_IMAGES = ("untrained_generator", "class_cnn")


@dataclass(frozen=True)
class Images:
    """Images of cells as methods get them; those that a method does not declare are None.

    Attributes
    ----------
    brightfield : float32 array, (cells, height, width, channels), or None
    qpi : float32 array, (cells, height, width, 1), or None
        Measured phase, rad.
    pixel_size_um, wavelength_um, refraction_increment : float
        See `CellImages`.
    """

    brightfield: np.ndarray | None
    qpi: np.ndarray | None
    pixel_size_um: float
    wavelength_um: float | None
    refraction_increment: float


@dataclass(frozen=True)
class Baseline:
    """The features of the test cells by one method.

    Attributes
    ----------
    name : str
    features : float32 array, (cells, any number), or None
        "untouched" has the features as they were given. None when the method could not be run;
        `note` says why and what to do.
    needs : str
        One of `NEEDS`.
    trains_on : tuple of str
    note : str
        What the method uses, or why it is missing.
    """

    name: str
    features: np.ndarray | None = field(repr=False)
    needs: str
    trains_on: tuple
    note: str

    @property
    def oracle(self):
        """Whether the class of the test cells was used."""
        return self.needs == "class"

    @property
    def shown_name(self):
        """The name in a table, where oracles are marked."""
        return f"{self.name} (oracle)" if self.oracle else self.name


def field_methods(with_images=False):
    """Return the methods of `evaluation.methods`, in the order of a table.

    Parameters
    ----------
    with_images : bool
        Also those that work on images.
    """
    names = OF_FEATURES + (OF_IMAGES if with_images else ())
    return [import_module(f"cytomad_lib.evaluation.methods.{name}") for name in names]


def load_method(path):
    """Read a method from a Python file. The file is run.

    Parameters
    ----------
    path : path

    Returns
    -------
    module
        Its `NAME` is that of the file, if it has none.

    Raises
    ------
    CytomadError
        If there is no such Python file, or it does not hold what a method must.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise CytomadError(
            f"There is no Python file {path}. Expected a method, such as my_method.py."
        )
    spec = spec_from_file_location(f"method_{path.stem}", path)
    method = module_from_spec(spec)
    spec.loader.exec_module(method)
    fitted = {"fit", "TRAINS_ON"} & set(dir(method))
    needed = ("transform", "NEEDS", *(("fit", "TRAINS_ON") if fitted else ()))
    missing = [name for name in needed if not hasattr(method, name)]
    if missing:
        raise CytomadError(
            f"{path} lacks {', '.join(missing)}. Expected transform(fitted, features, images, "
            "labels) and NEEDS, and fit(features, images, labels, seed) beside TRAINS_ON."
        )
    trained = getattr(method, "TRAINS_ON", ())
    if method.NEEDS not in NEEDS or set(trained) - set(TRAINING) or isinstance(trained, str):
        raise CytomadError(
            f"{path} has NEEDS = {method.NEEDS!r} and TRAINS_ON = {trained!r}. Expected "
            f"one of {', '.join(NEEDS)}, and a tuple of any of {', '.join(TRAINING)}."
        )
    method.NAME = getattr(method, "NAME", path.stem)
    return method


def trains_on(method):
    """Return what a method is fitted to, of training cells; empty if it is not fitted."""
    return tuple(getattr(method, "TRAINS_ON", ()))


def run_method(method, test, train=None, seed=0):
    """Fit a method to training cells, and transform test cells.

    Parameters
    ----------
    method : module
        See the top of this file.
    test, train : tuple of features, `CellImages` or `Images` or None, labels
        `train` None if there are no training cells.
    seed : int

    Returns
    -------
    float32 array, (cells, any number)

    Raises
    ------
    ProbeError
        If the method needs training cells and there are none, or returns something else than
        finite features of every cell.
    """
    trained = trains_on(method)
    if trained and train is None:
        raise ProbeError(
            f"{method.NAME} is fitted on training cells: give `train_features` and labels."
        )
    if "batch" in trained:
        need_two("batches of training cells", pd.Categorical(train[2]["batch"]))
    shown = _shown(train, trained) if trained else (None, None, None)
    fitted = method.fit(*shown, seed) if hasattr(method, "fit") else seed
    test = _shown(test, ("features", "brightfield", *NEEDS[method.NEEDS]))
    found = _checked(method, method.transform(fitted, *test), len(test[0]))
    if method.NEEDS not in ("many cells of the batch", "class"):
        _check_alone(method, fitted, test, found)
    return found


def baseline_features(
    test_features,
    test_labels,
    train_features=None,
    train_labels=None,
    seed=0,
    test_images=None,
    train_images=None,
    methods=None,
):
    """Return the features of the test cells by every method.

    Parameters
    ----------
    test_features : array, (cells, features) or (cells, height, width[, 1])
        Features of the untouched pretrained generator (images: one feature per pixel).
    test_labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    train_features, train_labels : optional
        The same of the training cells.
    seed : int
    test_images, train_images : CellImages, optional
        Of the same cells, for methods that work on images.
    methods : sequence of modules, optional
        By default `field_methods`.

    Returns
    -------
    dict of str to Baseline
        By name, in the order of a table, "untouched" first. A method that cannot be run (package
        not installed, no training cells, too few cells) is there with `features` None and a `note`.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, there is only one batch, or training and test
        cells have different features.
    """
    features, batch, _ = check_features(test_features, test_labels)
    need_two("batches", batch)
    test = features, test_images, test_labels
    train = _checked_train(train_features, train_images, train_labels, features.shape[1])
    methods = field_methods(test_images is not None) if methods is None else methods
    found = {"untouched": Baseline("untouched", features, "nothing", (), "no correction")}
    for method in methods:
        trained = trains_on(method)
        try:
            values = run_method(method, test, train, seed)
            fitted = f"fitted on {', '.join(trained)} of training cells" if trained else "no fit"
            note = f"needs {method.NEEDS}; {fitted}"
        except ProbeError as error:  # of this method only: the common inputs were checked before
            values, note = None, str(error)
        found[method.NAME] = Baseline(method.NAME, values, method.NEEDS, trained, note)
    return found


def null_control(
    test_features, test_labels, train_features=None, train_labels=None, seed=0, methods=None
):
    """Correct a batch that has no effect by every method, and let a probe look for it (M7).

    The cells of each group (batch and class) are split in two halves at random, and the halves are
    taken for batches. Whatever a probe then finds comes from the method. Methods that use no batch,
    or that are trained on images, are left out.

    Parameters
    ----------
    test_features, test_labels, train_features, train_labels, seed, methods
        As for `baseline_features`.

    Returns
    -------
    pandas.DataFrame
        One row per method, by name; `null_control`, the accuracy of the strongest probe in telling
        the halves apart within class, mean over `CONTROL_SPLITS` splits; `chance`, 0.5; `null_95`,
        what shuffled halves reach; `writes_batch`, whether the accuracy is above it. A method that
        cannot be run is missing from the table.

    Raises
    ------
    ProbeError
        As `baseline_features`, or if no class has enough cells for two halves.
    """
    methods = field_methods() if methods is None else methods
    methods = [m for m in methods if "batch" in (*trains_on(m), *NEEDS[m.NEEDS])]
    methods = [m for m in methods if not {"brightfield", "qpi"} & set(trains_on(m))]
    found = {}
    for split in range(CONTROL_SPLITS):
        rng = np.random.default_rng([seed, split])
        halves = _halves(test_labels, rng)
        train_halves = None if train_labels is None else _halves(train_labels, rng)
        given = test_features, halves, train_features, train_halves, seed + split
        for name, baseline in baseline_features(*given, methods=methods).items():
            if baseline.features is not None:
                # The null hardly depends on the features: once is enough.
                shuffles = 20 if not found else 0
                settings = halves, seed, shuffles, CONTROL_PROBES
                result = within_class_batch_accuracy(baseline.features, *settings)
                found.setdefault(name, []).append(result)
    null_95 = found["untouched"][0].null_95
    accuracy = {name: np.mean([r.accuracy for r in own]) for name, own in found.items()}
    table = pd.DataFrame({"null_control": accuracy, "chance": 0.5, "null_95": null_95})
    return table.assign(writes_batch=table["null_control"] > null_95).rename_axis("baseline")


# --- helpers ---------------------------------------------------------------------------------


def _shown(cells, names):
    """Return the features, images and labels that a method declares."""
    features, images, labels = cells
    if images is not None:
        optics = (images.pixel_size_um, images.wavelength_um, images.refraction_increment)
        pixels = (
            getattr(images, name) if name in names else None for name in ("brightfield", "qpi")
        )
        images = Images(*pixels, *optics)
    columns = [name for name in ("batch", "class_name") if name in names]
    return features if "features" in names else None, images, labels[columns]


def _checked(method, features, n_cells):
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) != n_cells or not np.isfinite(features).all():
        raise ProbeError(
            f"{method.NAME} returned features of shape {features.shape} for {n_cells} cells, with "
            f"{np.sum(~np.isfinite(features))} values that are not finite. Expected finite values "
            "of shape (cells, features)."
        )
    return features


def _check_alone(method, fitted, cells, found):
    """Refuse a method whose features depend on other cells, against what it declares."""
    features, images, labels = cells
    if images is not None:
        given = {name: getattr(images, name) for name in ("brightfield", "qpi")}
        images = replace(images, **{k: v if v is None else v[:ALONE] for k, v in given.items()})
    alone = method.transform(fitted, features[:ALONE], images, labels[:ALONE])
    alone, together = _checked(method, alone, len(labels[:ALONE])), found[:ALONE]
    tolerance = 1e-3 * max(float(np.abs(found).max()), 1e-6)
    if alone.shape != together.shape or np.abs(alone - together).max() > tolerance:
        raise CytomadError(
            f"{method.NAME} has NEEDS = {method.NEEDS!r}, but the features of {len(alone)} cells "
            "change when the other cells are left out. Expected a transform that treats each cell "
            'on its own, or NEEDS = "many cells of the batch".'
        )


def _checked_train(features, images, labels, n_features):
    if features is None and labels is None:
        return None
    if features is None or labels is None:
        raise ProbeError("Give both `train_features` and `train_labels`, or neither.")
    features, batch, class_name = check_features(features, labels)
    if features.shape[1] != n_features:
        raise ProbeError(
            f"The training cells have {features.shape[1]} features, the test cells {n_features}; "
            "expected the same. Were both predicted by the same model?"
        )
    return features, images, pd.DataFrame({"batch": batch, "class_name": class_name})


def _halves(labels, rng):
    """Return the labels with two random halves of each group as batches."""
    second = np.zeros(len(labels), dtype=bool)
    for cells in labels.groupby(["batch", "class_name"], observed=True).indices.values():
        # Of an odd number, either half may be the larger.
        second[rng.permutation(cells)[: (len(cells) + rng.integers(2)) // 2]] = True
    return labels.assign(batch=pd.Categorical(np.where(second, "second half", "first half")))
