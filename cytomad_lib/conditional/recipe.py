"""The conditional recipe of batch removal, from top to bottom.

It starts from the pretrained generator. First the images, then the features:

* **Batch transfer.** Some brightfield images are shown as another batch would have shown them
  (`batch_transfer`). The target phase stays, so the day no longer helps to predict it.
* **Batch effect.** A small layer per batch (`batch_effect`) maps the generated image to the
  measured one, so the image can be free of batch and still fit the measurement.
* **Adversary of the images** (`adversary`). It gets a summary of the image (`image_summary`) and
  the class. The generator normalises by its running statistics meanwhile, as it will at prediction:
  an image then depends on its own cell alone.
* **The running mean of the weights** is kept of the generator of the images. Finished images are
  blurred a little inside the cell, as days differ most in the finest detail, and one factor brings
  their total phase to the measured one.
* **An encoder for the features alone** (`networks`): an encoder that also has to draw the phase
  cannot forget the day. It gets every cell twice, as it is and transferred to another batch. From
  both it must predict the class and the cell's biophysical measures, whose batch is removed
  (`targets`), and both must give the same features.
* **Alignment.** A small head then maps the features to a few numbers in which all batches of a
  class have the same distribution, and from which class and measures can still be predicted
  (`mmd_alignment`).

Brightness and contrast of each brightfield image are normalised. Cells are turned and mirrored at
random. There is no discriminator: it would demand that images look measured, batch included.

Example
-------
>>> run = Run.create("results/run", DEMO, train_cells, "lung", seed=0)
>>> pretrain(run, train_cells, valid_cells)
>>> remove_batches(run, train_cells, valid_cells, recipe="conditional")   # calls this module
"""

from functools import partial

import numpy as np

from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.batch_transfer import BatchTransfer
from cytomad_lib.conditional.mmd_alignment import align_features
from cytomad_lib.conditional.networks import adopt_weights
from cytomad_lib.conditional.targets import measure_targets
from cytomad_lib.conditional.training import (
    FeatureRemoval,
    ImageRemoval,
    image_statistics,
    match_total_phase,
    transfer_all,
    transfer_at_random,
)
from cytomad_lib.runs import ALIGNED, IMAGES
from cytomad_lib.training.minibatches import Minibatches, ReseedDropout
from cytomad_lib.training.recipes import VALIDATION_BATCH
from cytomad_lib.training.stages import Stage, save_weights, say


def remove_batches(run, train, valid, verbose=0, watching=()):
    """Train the conditional recipe to its end, or resume it.

    Parameters
    ----------
    run : Run
        With a finished pretraining.
    train, valid : CellImages or CellFiles
    verbose : int
    watching : sequence of keras.callbacks.Callback
        They watch both trainings, one after the other.

    Returns
    -------
    DataFrame
        Losses per epoch of the features.
    """
    if (run.folder / "conditional" / ALIGNED).exists():
        run.generator("conditional")  # which refuses a damaged file
        return run.history("conditional")
    recipe = run.preset.conditional
    generator = run.new_conditional_generator(run.preset.precision)
    adopt_weights(generator, run.generator("pretraining"), *image_statistics(train))
    shares, transfer = batch_shares(train.labels), BatchTransfer.fit(train)
    fit = partial(_fit, run, generator, train, valid, verbose=verbose, watching=watching)

    steps = recipe.image_epochs * (len(train) // recipe.image_cells)
    images = ImageRemoval(generator, shares, run.preset, steps, run.seed_for("image_removal"))
    images.batch_effect.start_from_scales(np.log(transfer.scales))
    change = transfer_at_random(transfer, shares, recipe)
    fit(images, IMAGES, recipe.image_epochs, recipe.image_cells, change)
    match_total_phase(generator, train, transfer.scales)

    say(verbose, "The images are finished. Next, the features")
    measures = measure_targets(train)
    steps = recipe.feature_epochs * (len(train) // recipe.feature_cells)
    sizes = len(run.classes), measures.shape[1]
    seed = run.seed_for("feature_removal")
    features = FeatureRemoval(generator, *sizes, run.preset, steps, seed)
    change = transfer_all(transfer, shares)
    history = fit(
        features, "conditional", recipe.feature_epochs, recipe.feature_cells, change, measures
    )
    say(verbose, "Aligning the batches of each class")
    align_features(generator, train, measures, recipe, run.seed_for("mmd_alignment"), verbose)
    save_weights(generator, run.folder / "conditional" / ALIGNED)
    return history


def _fit(run, generator, train, valid, model, folder, epochs, n, change, measures=None, **options):
    """Fit a model on minibatches of `n` cells, or resume it; return its losses per epoch."""
    model.compile()
    stage = Stage(run.folder / folder, model, {"generator": generator}, epochs, last=True)
    feed = Minibatches.of_cells(
        train,
        n,
        measures=measures,
        seed=run.seed_for("conditional_cell_order"),
        first_epoch=stage.epochs_done,
        groups=train.batch_codes * len(run.classes) + train.class_codes,
        change=change,
    )
    of_valid = None if measures is None else measure_targets(valid)
    valid_feed = Minibatches.of_cells(valid, VALIDATION_BATCH, measures=of_valid, shuffle=False)
    reseed = ReseedDropout(model.seed_generators, run.seed_for("conditional_dropout"))
    return stage.fit(feed, valid_feed, callbacks=[reseed], **options)
