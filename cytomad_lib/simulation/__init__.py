"""Simulated cells with known truth: morphology, treatment, optics, acquisition (batches), files.

>>> from cytomad_lib.simulation import simulate_cells
>>> cells = simulate_cells("H358", 4, batch="Batch2", seed=1)
>>> cells.brightfield.shape
(4, 64, 64)
"""

from cytomad_lib.simulation.acquisition import batch_table, parameter_table, simulate_cells
from cytomad_lib.simulation.write import DEMO_DATASET, DEMO_DRUG_DATASET, simulate_dataset

__all__ = [
    "DEMO_DATASET",
    "DEMO_DRUG_DATASET",
    "batch_table",
    "parameter_table",
    "simulate_cells",
    "simulate_dataset",
]
