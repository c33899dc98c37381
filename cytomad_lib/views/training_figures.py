"""Figures about one step of training, and about what batch removal asks for and reports.

- `judged_pairs`: what the discriminator is shown, and its answer patch by patch.
- `loss_parts`: what each term adds to the generator's loss.
- `called_first_batch`: the share of cells that the recipe's judges call "first batch".

Example
-------
>>> table = loss_table({"adversarial": 0.7, "mae": 0.2}, {"adversarial": 1, "mae": 100})
>>> table["in the loss"].round(1).to_list()
[0.7, 20.0]
>>> figure = loss_parts({"Before": table})
"""

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from cytomad_lib.backend import keras
from cytomad_lib.views.plots import (
    METHOD_COLOURS,
    PHASE_MAP,
    Figure,
    colour_limits,
    interpolation_of,
    scale_bar,
    squeezed,
)

PATCH_MAP = "cividis"  # another map than that of phase, so that neither is taken for the other


def judged_pairs(brightfield, phases, patches, pixel_size_um):
    """Show pairs of images, and for each what the discriminator says of its patches.

    Parameters
    ----------
    brightfield : array or tensor, (height, width[, 1])
        Of one cell: the first image of every pair.
    phases : dict
        Name to phase image in rad, (height, width[, 1]): the second image of each pair.
    patches : dict
        The same names to the discriminator's probabilities, (rows, columns[, 1]).
    pixel_size_um : float

    Returns
    -------
    Figure
        One row per pair.

    Raises
    ------
    ValueError
        If the two dicts have different names.
    """
    if list(phases) != list(patches):
        raise ValueError(
            f"Found phases of {list(phases)} and patches of {list(patches)}; expected the same."
        )
    images = squeezed(np.stack([_as_array(image) for image in phases.values()]))
    given = squeezed(_as_array(brightfield)[None])[0]
    answers = squeezed(np.stack([_as_array(answer) for answer in patches.values()]))
    height, width = given.shape
    extent = (0, width * pixel_size_um, height * pixel_size_um, 0)
    drawing = {"extent": extent, "interpolation": interpolation_of(width)}
    figure = Figure(figsize=(8.2, 2.3 * len(images) + 0.3), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    shared = colour_limits(images)
    for line, name, image, answer in zip(axes, phases, images, answers, strict=True):
        line[0].imshow(given, cmap="gray", norm=colour_limits(given), **drawing)
        drawn = line[1].imshow(image, cmap=PHASE_MAP, norm=shared, **drawing)
        judged = line[2].imshow(answer, cmap=PATCH_MAP, norm=Normalize(0, 1), extent=extent)
        line[0].set_ylabel(name, fontsize=10)
        line[2].set_xlabel(f"mean {answer.mean():.2f}", fontsize=9)
        for panel in line:
            panel.set(xticks=[], yticks=[])
    for panel, title in zip(axes[0], ("Brightfield", "Phase", "Answer per patch"), strict=True):
        panel.set_title(title, fontsize=10)
    scale_bar(axes[0, 0], 10, extent, "white")
    figure.colorbar(drawn, ax=axes[:, 1], label="phase (rad)", aspect=25)
    figure.colorbar(judged, ax=axes[:, 2], label='probability of "measured"', aspect=25)
    return figure


def loss_table(terms, weights):
    """List the terms of a loss with their weights.

    Parameters
    ----------
    terms : dict
        Name to value; names without a weight are left out.
    weights : dict
        Name to weight, in the order shown.

    Returns
    -------
    DataFrame
        Indexed by term: `value`, `weight`, and their product `in the loss`.
    """
    table = pd.DataFrame(
        {
            "value": {name: float(terms[name]) for name in weights},
            "weight": {name: float(weight) for name, weight in weights.items()},
        }
    )
    table["in the loss"] = table["value"] * table["weight"]
    return table.rename_axis("term")


def loss_parts(tables):
    """Draw what each term adds to the loss, as bars that are laid end to end.

    Parameters
    ----------
    tables : dict
        Name of the moment, such as "Before", to a table of `loss_table`. The terms are the same.

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(8.2, 0.6 * len(tables) + 1.5), layout="constrained")
    panel = figure.subplots()
    terms = list(next(iter(tables.values())).index)
    left = np.zeros(len(tables))
    for number, term in enumerate(terms):
        parts = np.array([table.loc[term, "in the loss"] for table in tables.values()])
        panel.barh(
            range(len(tables)),
            parts,
            left=left,
            height=0.6,
            color=METHOD_COLOURS[number % len(METHOD_COLOURS)],
            edgecolor="white",
            label=term.replace("_", " "),
        )
        left += parts
    for row, total in enumerate(left):
        panel.text(total, row, f" {total:.0f}", va="center", fontsize=9)
    panel.set_yticks(range(len(tables)), list(tables))
    panel.set(xlabel="part of the generator's loss (value × weight)", xlim=(0, 1.1 * left.max()))
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(6, len(terms)), frameon=False, fontsize=9)
    return figure


def called_first_batch(verdicts, share, batch="first batch"):
    """Draw the share of cells that each judge calls "first batch", beside the share that are.

    Parameters
    ----------
    verdicts : dict
        Name of the moment, such as "after", to a Series: judge to share, as `Run.own_verdict`
        gives it. A judge may be missing at one moment.
    share : float
        The true share.
    batch : str
        Name of the first batch.

    Returns
    -------
    Figure
    """
    table = 100 * pd.DataFrame(verdicts)
    judges = list(max(verdicts.values(), key=len).index)
    table = table.loc[judges]
    figure = Figure(figsize=(7.6, 3.3), layout="constrained")
    panel = figure.subplots()
    height = 0.8 / len(table.columns)
    for number, moment in enumerate(table):
        places = np.arange(len(table)) + number * height
        values = table[moment].to_numpy()
        panel.barh(
            places, np.nan_to_num(values), 0.92 * height, color=METHOD_COLOURS[number], label=moment
        )
        for place, value in zip(places, values, strict=True):
            said = "" if np.isnan(value) else f" {value:.0f} %"
            panel.text(np.nan_to_num(value), place, said, va="center", fontsize=9)
    panel.axvline(100 * share, color="0.2", linestyle="--", label=f"are of {batch}")
    panel.set_yticks(
        np.arange(len(table)) + height * (len(table.columns) - 1) / 2,
        [name.replace("_", " ") for name in judges],
    )
    panel.set(xlabel=f'cells called "{batch}" (%)', xlim=(0, 112), xticks=range(0, 101, 20))
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _as_array(image):
    # Straight from a network it may be a tensor that still remembers its gradients.
    return keras.ops.convert_to_numpy(image)
