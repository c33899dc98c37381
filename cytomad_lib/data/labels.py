"""Labels of cells: batches and classes, as names and as codes."""

import numpy as np
import pandas as pd


class Labelled:
    """What follows from a table of labels: batches and classes, as names and as codes."""

    labels: pd.DataFrame

    @property
    def batches(self) -> tuple[str, ...]:
        """All batches of the layout, in its order; `batch_codes` counts in it."""
        return tuple(self.labels["batch"].cat.categories)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the layout, in its order; `class_codes` counts in it."""
        return tuple(self.labels["class_name"].cat.categories)

    @property
    def batch_codes(self) -> np.ndarray:
        """Batch of each cell as its place in `batches`: int32 array (cells,)."""
        return self.labels["batch"].cat.codes.to_numpy(np.int32)

    @property
    def class_codes(self) -> np.ndarray:
        """Class of each cell as its place in `classes`: int32 array (cells,)."""
        return self.labels["class_name"].cat.codes.to_numpy(np.int32)

    def in_slices(self, at_once=500):
        """Yield the cells in their order, `at_once` at a time, each slice as `CellImages`.

        For what needs all cells, but not together: of files, only one slice is in memory.
        """
        for start in range(0, len(self), at_once):
            yield self.read(np.arange(start, min(start + at_once, len(self))))
