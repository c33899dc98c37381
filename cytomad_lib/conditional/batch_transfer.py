"""Batch transfer: the brightfield image of a cell as another batch would have shown it.

A generator learns the batch because the brightfield image shows the day, and the target is the
phase measured on that day. After a transfer the brightfield image shows another day and the phase
stays, so the day no longer helps to predict the phase.

How a day shows a cell is fitted from the training pairs. To first order, an image of a phase object
is a linear filter of its phase (out of focus, bright rims turn dark; light from one side makes a
relief). The second order adds a filter of the squared phase. So, for each batch and each spatial
frequency, one complex number per order is fitted by least squares over the training cells:

    brightfield = background + filter1 * phase + filter2 * phase^2 + rest

A transfer exchanges background and filters. The rest (noise, and what two orders do not explain)
keeps its pattern and gets the power that it has on the new day. No truth is needed, and no
knowledge of the microscope. It is an approximation: a probe that was fitted on real images assigns
most transferred cells to their new day.

Source of the first-order picture: weak-object transfer of partially coherent imaging, Streibl 1985
(J. Opt. Soc. Am. A). Batch transfer in training is ours.

Example
-------
>>> transfer = BatchTransfer.fit(cells)                   # CellImages or CellFiles, training split
>>> some = cells.read(np.arange(3))
>>> moved = transfer(some.brightfield, some.qpi, some.batch_codes, np.array([0, 1, 2]))
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.fft

from cytomad_lib.conditional.batch_effect import batch_scales
from cytomad_lib.config import (
    PHASE_ORDERS,
    RIDGE,
    TINY_POWER,
)


@dataclass(frozen=True)
class BatchTransfer:
    """Move brightfield images between batches; made by `BatchTransfer.fit`.

    Attributes
    ----------
    filters : complex array, (batches, height, frequencies, orders + 1, channels)
        In the Fourier plane (of the real transform): a filter per order of the phase, then the
        background.
    rest_power : array, (batches, height, frequencies, channels)
        Mean power of what they leave unexplained.
    scales : array, (batches,)
        What the phase images of each batch are divided by; see `batch_scales`.
    present : int array
        Codes of the batches that have cells, so that cells can be moved to them.
    """

    filters: np.ndarray = field(repr=False)
    rest_power: np.ndarray = field(repr=False)
    scales: np.ndarray
    present: np.ndarray

    @classmethod
    def fit(cls, cells):
        """Find how each batch shows a cell.

        Parameters
        ----------
        cells : CellImages or CellFiles
            The training cells; read in slices.

        Returns
        -------
        BatchTransfer
        """
        scales = np.exp(batch_scales(cells))
        sums = {}
        for part in cells.in_slices(100):
            for batch in np.unique(part.batch_codes):
                own = part.batch_codes == batch
                terms = _terms(part.qpi[own], scales[batch])
                image = _spectrum(part.brightfield[own])
                found = _normal_equations(terms, image)
                sums[batch] = [a + b for a, b in zip(sums.get(batch, [0] * 4), found, strict=True)]
        present = np.array(sorted(sums))
        solved = [_solve(*sums[batch]) for batch in present]
        filters, rest_power = (np.zeros((len(scales), *one.shape), one.dtype) for one in solved[0])
        for batch, (own_filters, own_rest) in zip(present, solved, strict=True):
            filters[batch], rest_power[batch] = own_filters, own_rest
        return cls(filters, rest_power, scales, present)

    def __call__(self, brightfield, qpi, own, other):
        """Show cells as another batch would have.

        Parameters
        ----------
        brightfield : array (n, height, width, channels)
        qpi : array (n, height, width, 1), rad
            Measured, in the cells' own batches.
        own, other : int array (n,)
            Codes of the batches that the cells are of, and are moved to.

        Returns
        -------
        float32 array (n, height, width, channels)

        Raises
        ------
        ValueError
            If a batch had no cells to learn from.
        """
        for codes in (own, other):
            if not np.isin(codes, self.present).all():
                raise ValueError(
                    f"Batches {sorted(set(np.asarray(codes).tolist()))} are asked for, expected "
                    f"some of {self.present.tolist()}: the others had no cells to learn from."
                )
        # In single precision, as this is done in every step of a training.
        terms = _terms(qpi, self.scales[own][:, None, None], np.float32)
        gain = np.sqrt((self.rest_power[other] + TINY_POWER) / (self.rest_power[own] + TINY_POWER))
        # What the other batch shows of the phase, less what the own one does; and the rest as
        # strong as it is there.
        change = (self.filters[other] - gain[..., None, :] * self.filters[own]).astype("complex64")
        moved = gain.astype(np.float32) * _spectrum(brightfield, np.float32)
        moved += np.sum(terms[..., None] * change, axis=-2)
        return scipy.fft.irfft2(moved, s=brightfield.shape[1:3], axes=(1, 2))


def _spectrum(images, precision=float):
    """Transform images (n, height, width, channels) over height and width."""
    return scipy.fft.rfft2(np.asarray(images, precision), axes=(1, 2))


def _terms(qpi, scale, precision=float):
    """Return (n, height, frequencies, orders + 1): orders of the phase, and the background."""
    phase = qpi[..., 0] / scale
    orders = np.stack([phase ** (order + 1) for order in range(PHASE_ORDERS)], axis=-1)
    spectrum = _spectrum(orders, precision)
    return np.concatenate([spectrum, np.ones_like(spectrum[..., :1])], axis=-1)


def _normal_equations(terms, image):
    """Return what least squares needs of some cells, per frequency; it adds up over cells."""
    terms, image = np.moveaxis(terms, 0, 2), np.moveaxis(image, 0, 2)  # cells third
    turned = terms.conj().swapaxes(-1, -2)
    return turned @ terms, turned @ image, np.sum(np.abs(image) ** 2, axis=2), image.shape[2]


def _solve(of_terms, with_image, power, count):
    """Return filters (height, frequencies, terms, channels) and the power of the rest."""
    size = np.sqrt(np.abs(np.diagonal(of_terms, axis1=-2, axis2=-1))) + TINY_POWER
    scaled = of_terms / size[..., :, None] / size[..., None, :]
    scaled = scaled + RIDGE * np.eye(scaled.shape[-1])
    filters = np.linalg.solve(scaled, with_image / size[..., None]) / size[..., None]
    explained = 2 * np.real(np.sum(filters.conj() * with_image, axis=-2))
    explained -= np.real(np.sum(filters.conj() * (of_terms @ filters), axis=-2))
    return filters, np.maximum(power - explained, 0) / count
