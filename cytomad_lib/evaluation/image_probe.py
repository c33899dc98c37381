"""Can the batch still be read from images? A new convolutional network tries.

`image_batch_accuracy` trains a network on some of the cells given, which should be Test cells, and
predicts the batch of the others, so that each cell is predicted once (cross-validation). The
network knows the class of each cell and chooses among the batches of that class, so its accuracy
means the same as `probes.within_class_batch_accuracy`: chance is 1 / (batches of the class).

A probe that finds nothing shows little unless it is a strong one. With some 24 training cells per
group, four things make this one strong:

- *One network for all classes.* What a batch leaves behind (noise, blur, fringes) is much the same
  in each class, so the filters are shared. The last layers get the class as input.
- *Fine detail is an input of its own*: the image minus its blurred copy, compressed so that the
  weak texture of the background counts beside the edges of the cell.
- *The power spectrum is given*, as the logarithm of the power in 32 bands of spatial frequency.
  Blur, sharpening and the grid that transposed convolutions leave are plain there, where filters
  would have to be learned from many cells.
- *So is a coarse copy* (8 x 8), where slopes of the background are plain.

Example
-------
>>> result = image_batch_accuracy(prediction.images, prediction.labels)
>>> result.accuracy, result.null_95                                       # 0.88, 0.36
"""

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from tqdm import tqdm

from cytomad_lib.backend import keras
from cytomad_lib.evaluation.bottleneck import outputs
from cytomad_lib.evaluation.image_quality import as_stack
from cytomad_lib.evaluation.probe_results import make_result, mean_recall
from cytomad_lib.evaluation.tasks import (
    ProbeError,
    balanced,
    batch_tasks,
    check_features,
    with_shuffles,
)
from cytomad_lib.layers import BatchNormalization
from cytomad_lib.training.minibatches import Minibatches

MEASURE = "batch within class, images"
SMALLEST = 16
N_SHUFFLES = 1000
MINIBATCH = 32
RATE = 3e-3
MIN_EPOCHS, MIN_STEPS = 20, 300
FILTERS = (24, 48)
COARSE = 8  # pixels per side of the coarse copy
DETAIL_SIGMA = 1.5  # pixels; coarser than this is not fine detail
NORM_MOMENTUM = 0.9  # 0.99 would need 500 steps before the running statistics are right


def image_batch_accuracy(images, labels, seed=0, n_folds=5, epochs=None, progress=False):
    """Tell the batches of one class apart from images; averaged over the classes.

    Groups with fewer cells than folds and classes with one batch only are left out, see
    `probes.left_out`.

    Parameters
    ----------
    images : array, (cells, height, width) or (cells, height, width, 1)
        Phase in rad (or any other images); at least 16 pixels a side.
    labels : pandas.DataFrame
        One row per cell, columns `batch` and `class_name`.
    seed : int
        Of the folds, the networks and the shuffles. NumPy's and Keras' global random states are
        neither used nor changed.
    n_folds : int
        Folds of the cross-validation, stratified by group; one network is trained for each.
    epochs : int, optional
        Passes over the training cells; by default 20, or where cells are few, as many as give
        300 steps.
    progress : bool
        Show a bar over the folds.

    Returns
    -------
    ProbeResult
        `measure` is "batch within class, images", `probe` is "cnn"; `bits` and `confusion` are as
        in `probes.within_class_batch_accuracy`, `by_group` is the accuracy in each class. The null
        differs from there: to train networks for each shuffle would take hours, so the predictions
        stay as they are and the true batches are shuffled, inside each class and fold, 1000 times.
        That is how far chance alone carries the score of these predictions.

    Raises
    ------
    ProbeError
        If lengths differ, values are not finite, images are too small, or no class has two batches
        with enough cells.
    ImageShapeError
        If they are not images.
    """
    images, batch, class_name = _checked_images(images, labels)
    tasks, _ = batch_tasks(batch, class_name, n_folds, seed)
    probabilities = _cross_validate(images, batch, class_name, tasks, seed, epochs, progress)
    rng = np.random.default_rng(seed)
    outcomes, scores = [], []
    for task in tasks:
        # Among the batches of the class.
        found = probabilities[task.cells][:, batch.categories.get_indexer(task.names)]
        codes = with_shuffles(task.codes, task.folds, N_SHUFFLES, rng)
        scores.append(mean_recall(found.argmax(axis=1) == codes, codes, len(task.names)))
        outcomes.append((task, {"cnn": found}, np.ones(len(task.cells), dtype=bool)))
    chance = np.mean([1 / len(task.names) for task in tasks])
    scores = {"cnn": np.mean(scores, axis=0)}
    return make_result(MEASURE, scores, chance, outcomes, seed, batches=batch.categories)


def _checked_images(images, labels):
    images = as_stack(images).astype(np.float32)
    if min(images.shape[1:]) < SMALLEST:
        raise ProbeError(
            f"Found images of shape {images.shape}; expected at least {SMALLEST} pixels a side."
        )
    _, batch, class_name = check_features(images, labels)
    return images, batch, class_name


# --- the network's inputs --------------------------------------------------------------------


def _views(images):
    """Return the image with its fine detail (n, h, w, 2), and its spectrum (n, 32)."""
    detail = images - gaussian_filter(images, (0, DETAIL_SIGMA, DETAIL_SIGMA))
    return np.stack([images, detail], axis=-1), _log_spectrum(images)


def _log_spectrum(images):
    """Log of the power in 4 x 8 bands of frequency, vertical times horizontal: (n, 32)."""
    height, width = images.shape[1:]
    # The window lets the image fade out at its rim. Without it, the step from one side to the other
    # would be power at all frequencies.
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    power = np.fft.fftshift(np.abs(np.fft.fft2(centred * window)) ** 2, axes=(1, 2))
    # The other half is the same, as the image is real.
    power = power[:, height // 2 :]
    bands = [
        block.mean(axis=(1, 2))
        for rows in np.array_split(power, 4, axis=1)
        for block in np.array_split(rows, 8, axis=2)
    ]
    bands = np.stack(bands, axis=1)
    return np.log(bands + 1e-9 * bands.mean() + 1e-30)


def _standardised(views, spectrum, train):
    """Scale by the training cells: one mean and spread per channel, and per band."""
    views = (views - views[train].mean(axis=(0, 1, 2))) / _spread(views[train], (0, 1, 2))
    # Weak texture is enlarged, strong edges are compressed.
    views[..., 1] = np.arcsinh(10 * views[..., 1]) / 2
    spectrum = (spectrum - spectrum[train].mean(axis=0)) / _spread(spectrum[train], 0)
    return views.astype(np.float32), spectrum.astype(np.float32)


def _spread(values, axis):
    # Where all are equal there is nothing to scale.
    spread = values.std(axis=axis)
    return np.where(spread > 0, spread, 1)


# --- the network -----------------------------------------------------------------------------


def _network(image_shape, n_bands, n_classes, n_batches, seed):
    """Build [image, spectrum, class, allowed batches] -> logits of the batches."""
    layers, ops = keras.layers, keras.ops
    rng = np.random.default_rng(seed)

    def draw():
        return int(rng.integers(2**31))

    def weights():
        return keras.initializers.HeNormal(seed=draw())

    def norm():
        return BatchNormalization(momentum=NORM_MOMENTUM)

    inputs = [layers.Input(s) for s in (image_shape, (n_bands,), (n_classes,), (n_batches,))]
    image, spectrum, own_class, allowed = inputs

    pools = [max(1, size // COARSE) for size in image_shape[:2]]
    coarse = layers.Flatten()(layers.AveragePooling2D(pools, padding="same")(image[..., :1]))
    coarse = layers.Dropout(0.3, seed=draw())(norm()(coarse))
    summaries = [spectrum, layers.Dense(16, "relu", kernel_initializer=weights())(coarse)]

    x = image
    # Few, large steps: on two processor cores the time goes into the first convolution.
    for filters, kernel, stride in zip(FILTERS, (8, 3), (4, 2), strict=True):
        options = {"padding": "same", "use_bias": False, "kernel_initializer": weights()}
        x = layers.Conv2D(filters, kernel, strides=stride, **options)(x)
        x = layers.ReLU()(norm()(x))
        # The mean and the power of each filter: texture is in both, wherever the cell lies.
        summaries.append(ops.mean(x, axis=(1, 2)))
        summaries.append(ops.log(ops.mean(ops.square(x), axis=(1, 2)) + 1e-3))

    x = norm()(layers.Concatenate()(summaries))
    x = layers.Concatenate()([layers.Dropout(0.3, seed=draw())(x), own_class])
    x = layers.Dense(64, "relu", kernel_initializer=weights())(x)
    x = layers.Dropout(0.3, seed=draw())(x)
    logits = layers.Dense(n_batches, kernel_initializer=weights())(x)
    return keras.Model(inputs, logits - 1e4 * (1 - allowed))


class _Trainer:
    """One compiled network that starts from new weights in each fold; compiling takes seconds."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.network = None

    def fit(self, inputs, codes, seed):
        """Train on `inputs`, from new weights."""
        # The seeded minibatches shuffle, so `fit` must not.
        feed = Minibatches.of_arrays(inputs, codes, MINIBATCH, seed=seed, keep_last=False)
        shapes = [part.shape[1:] for part in inputs]
        fresh = _network(shapes[0], *(shape[0] for shape in shapes[1:]), seed)
        if self.network is None:
            self.epochs = self.epochs or max(MIN_EPOCHS, -(-MIN_STEPS // len(feed)))
            self._compile(fresh, self.epochs * len(feed))
        self.network.set_weights(fresh.get_weights())
        for variable, value in zip(self.network.optimizer.variables, self._start, strict=True):
            variable.assign(value)
        self.network.fit(feed, epochs=self.epochs, shuffle=False, verbose=0)

    def probabilities(self, inputs):
        """Return (cells, batches)."""
        # Called directly: `predict` would compile for each new number of cells.
        return softmax(outputs(self.network, *inputs), axis=1)

    def _compile(self, network, steps):
        # The rate falls to zero, so that the last weights do not depend on the last minibatch.
        rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
        network.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        network.optimizer.build(network.trainable_variables)
        # Copies, because an array from PyTorch follows its variable.
        state = network.optimizer.variables
        self._start = [np.array(keras.ops.convert_to_numpy(v)) for v in state]
        self.network = network


# --- cross-validation and scores -------------------------------------------------------------


def _cross_validate(images, batch, class_name, tasks, seed, epochs, progress):
    """Return (cells, batches) probabilities; each cell from the fold it was not trained in."""
    views, spectrum = _views(images)
    codes = batch.codes.astype(np.int32)
    own_class = np.eye(len(class_name.categories), dtype=np.float32)[class_name.codes]
    seen = np.zeros((len(class_name.categories), len(batch.categories)), dtype=np.float32)
    seen[class_name.codes, codes] = 1
    allowed = seen[class_name.codes]
    rng = np.random.default_rng(seed)
    found = np.zeros(allowed.shape)
    trainer = _Trainer(epochs)
    for fold in tqdm(np.unique(tasks[0].folds), desc="image probe", disable=not progress):
        train = np.concatenate([_training_cells(task, fold, rng) for task in tasks])
        test = np.concatenate([task.cells[task.folds == fold] for task in tasks])
        inputs = [*_standardised(views, spectrum, train), own_class, allowed]
        trainer.fit([part[train] for part in inputs], codes[train], int(rng.integers(2**31)))
        found[test] = trainer.probabilities([part[test] for part in inputs])
    return found


def _training_cells(task, fold, rng):
    """Draw equally many cells of each batch from the other folds."""
    return task.cells[balanced(np.flatnonzero(task.folds != fold), task.codes, rng)]
