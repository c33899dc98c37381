"""The conditional recipe of batch removal, from top to bottom.

It starts from the pretrained generator. First the images, then the features:

* **Batch transfer.** Some brightfield images are shown as another batch would have shown them
  (`batch_transfer`). The target phase stays, so the day no longer helps to predict it.
* **Batch effect.** A small layer per batch (`batch_effect`) maps the generated image to the
  measured one, so the image can be free of batch and still fit the measurement.
* **Adversary of the images** (`adversary`). It gets a summary of the image (`image_summary`) and
  the class. The generator normalises by its running statistics meanwhile, as it will at prediction:
  an image then depends on its own cell alone.
* **An encoder for the features alone** (`networks`): an encoder that also has to draw the phase
  cannot forget the day. It is trained on the class, with batch transfer.
* **The running mean of the weights** is kept of the generator of the images. Finished images are
  blurred a little inside the cell, as days differ most in the finest detail, and one factor brings
  their total phase to the measured one.
* **Erasure and alignment.** LEACE removes the linear trace of the batch from the features
  (`erasure`). A small head then maps them to a few numbers in which all batches of a class have the
  same distribution (`mmd_alignment`).

Brightness and contrast of each brightfield image are normalised. Cells are turned and mirrored at
random. There is no discriminator: it would demand that images look measured, batch included.

Example
-------
>>> run = Run.create("results/run", DEMO, train_cells, "lung", seed=0)
>>> pretrain(run, train_cells, valid_cells)
>>> remove_batches(run, train_cells, valid_cells, recipe="conditional")   # calls this module
"""

import numpy as np

from cytomad_lib.conditional.adversary import batch_shares
from cytomad_lib.conditional.batch_transfer import BatchTransfer
from cytomad_lib.conditional.mmd_alignment import align_features
from cytomad_lib.conditional.networks import adopt_weights
from cytomad_lib.conditional.training import (
    FeatureRemoval,
    ImageRemoval,
    erase_linear_trace,
    image_statistics,
    match_total_phase,
    transfer_at_random,
)
from cytomad_lib.prediction import generate
from cytomad_lib.runs import ERASED, IMAGES
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
    recipe = run.preset.conditional
    generator = run.new_conditional_generator(run.preset.precision)
    adopt_weights(generator, run.generator("pretraining"), *image_statistics(train))
    shares, transfer = batch_shares(train.labels), BatchTransfer.fit(train)
    change = transfer_at_random(transfer, shares, recipe)

    def fit(kind, folder, epochs, cells_per_step, seed):
        steps = epochs * (len(train) // cells_per_step)
        model = kind(generator, shares, run.preset, steps, seed=run.seed_for(seed))
        if kind is ImageRemoval:
            model.batch_effect.start_from_scales(np.log(transfer.scales))
        model.compile()
        stage = Stage(run.folder / folder, model, {"generator": generator}, epochs, last=True)
        return _fit(run, stage, change, cells_per_step, train, valid, verbose, watching)

    fit(ImageRemoval, IMAGES, recipe.image_epochs, recipe.image_cells, "image_removal")
    match_total_phase(generator, train, transfer.scales)
    say(verbose, "The images are finished. Next, the features")
    history = fit(
        FeatureRemoval,
        "conditional",
        recipe.feature_epochs,
        recipe.feature_cells,
        "feature_removal",
    )
    finished = run.folder / "conditional" / ERASED
    if not finished.exists():
        say(verbose, "Erasing the linear trace of the batch from the features")
        made = generate(generator, train, images=False)
        made = erase_linear_trace(generator, made)
        say(verbose, "Aligning the batches of each class")
        seed = run.seed_for("mmd_alignment")
        align_features(generator, made, recipe, len(run.classes), seed, verbose)
        save_weights(generator, finished)
    return history


def _fit(run, stage, change, cells_per_step, train, valid, verbose, watching):
    feed = Minibatches.of_cells(
        train,
        cells_per_step,
        seed=run.seed_for("conditional_cell_order"),
        first_epoch=stage.epochs_done,
        groups=train.batch_codes * len(run.classes) + train.class_codes,
        change=change,
    )
    valid_feed = Minibatches.of_cells(valid, VALIDATION_BATCH, shuffle=False)
    reseed = ReseedDropout(stage.model.seed_generators, run.seed_for("conditional_dropout"))
    return stage.fit(feed, valid_feed, verbose, [reseed], watching)
