"""Cells of known drug and dose, with features in units of the untreated cells' spread."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from cytomad_lib.data.errors import CytomadError, DatasetError
from cytomad_lib.data.layouts import dose_level
from cytomad_lib.evaluation.tasks import check_rows

MAX_COMPONENTS = 50
MIN_CELLS = 4  # of a group, so that both halves of it have a mean and a spread


class DoseError(CytomadError):
    """Features or labels whose dose response cannot be measured; the message says why."""


@dataclass(frozen=True)
class DoseCells:
    """Features of comparable scale, ``(cells, features)``, with the labels of each cell."""

    values: np.ndarray
    batch: np.ndarray
    class_name: np.ndarray
    dose: np.ndarray
    level: np.ndarray
    reference: str

    @property
    def untreated(self):
        """Whether each cell is untreated."""
        return self.class_name == self.reference

    def of(self, class_name, batch):
        """Return whether each cell is of this class and batch."""
        return (self.class_name == class_name) & (self.batch == batch)

    def batches_of_drug(self):
        """Return {drug: its batches}, both in the order of the labels."""
        pairs = dict.fromkeys(zip(self.class_name, self.batch, strict=True))
        drugs = dict.fromkeys(drug for drug, _ in pairs if drug != self.reference)
        return {drug: [batch for name, batch in pairs if name == drug] for drug in drugs}


def check_cells(features, labels, reference):
    """Return `DoseCells` of features and labels; see `dose_response.dose_distances`."""
    values = np.asarray(features, dtype=float)
    check_rows(values, labels, ("batch", "class_name", "dose"), DoseError)
    images, values = values.ndim > 2, values.reshape(len(values), -1)
    batch, class_name, dose = (labels[c].to_numpy(str) for c in ("batch", "class_name", "dose"))
    level = np.where(class_name == reference, 0, _levels(dose))
    _check_groups(batch, class_name, level, reference)
    cells = DoseCells(values, batch, class_name, dose, level, reference)
    return replace(cells, values=_one_scale(cells, images))


def check_levels(drug, batch, level):
    """Refuse a batch with too few doses for an order."""
    for name in np.unique(batch):
        found = np.unique(level[batch == name]).tolist()
        if len(found) < 3:
            raise DoseError(
                f"{drug} in {name} has the dose levels {found}; an order needs at least 3. Load "
                "more of its doses."
            )


def _levels(dose):
    names, which = np.unique(dose, return_inverse=True)
    try:
        return np.array([dose_level(str(name)) for name in names])[which]
    except DatasetError as error:
        raise DoseError(f"The labels' column `dose`: {error}") from error


def _check_groups(batch, class_name, level, reference):
    """Refuse cells that lack a control, or groups too small for a mean and a spread."""
    treated = class_name != reference
    if not treated.any() or treated.all():
        raise DoseError(
            f"Found the classes {sorted(set(class_name))}; expected the untreated {reference!r} "
            "and at least one drug."
        )
    alone = sorted(set(batch[treated]) - set(batch[~treated]))
    if alone:
        raise DoseError(
            f"There are no {reference} cells in {', '.join(alone)}, so the treated cells of that "
            f"day have no control. Load the {reference} cells of that batch, too."
        )
    if (level[treated] == 0).any():
        raise DoseError("Some treated cells have the dose Control. Check their labels.")
    counts = pd.DataFrame({"class": class_name, "batch": batch, "level": level}).value_counts()
    if counts.min() < MIN_CELLS:
        name = "/".join(map(str, counts.idxmin()))
        raise DoseError(
            f"The group {name} (class/batch/level) has {counts.min()} cells; at least {MIN_CELLS} "
            "are needed. Load more cells per group."
        )


def _one_scale(cells, images):
    """Bring features to comparable units, and to `MAX_COMPONENTS` at most; no label but DMSO."""
    values = cells.values
    if not images:  # pixels share a unit already
        spread = np.sqrt(np.mean(_centred(cells, cells.untreated) ** 2, axis=0))
        # A feature that varies in treated cells only gets a part of its total spread as unit.
        spread = np.maximum(spread, 0.1 * values.std(axis=0))
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    n_components = min(MAX_COMPONENTS, len(values) - 1)
    if values.shape[1] > n_components:
        values = PCA(n_components, svd_solver="full").fit_transform(values)
    if not _centred(replace(cells, values=values), cells.untreated).any():
        raise DoseError("No feature varies among the untreated cells, so distances have no unit.")
    return values


def _centred(cells, chosen):
    """Return the chosen cells, each minus the mean of its batch."""
    values = pd.DataFrame(cells.values[chosen])
    return (values - values.groupby(cells.batch[chosen]).transform("mean")).to_numpy()


def covariance_within(cells, chosen):
    """Covariance of the chosen untreated cells around the mean of their batch, shrunk."""
    centred = _centred(cells, chosen)
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    free = len(centred) - len(np.unique(cells.batch[chosen]))
    return covariance * len(centred) / free


def whitening_of(covariance):
    """Return W with W W' = covariance^-1; directions without variance are not scaled."""
    spread, directions = np.linalg.eigh(covariance)
    return directions / np.sqrt(np.where(spread > 0, spread, 1))
