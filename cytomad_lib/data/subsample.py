"""A smaller copy of a dataset in a published layout: fewer cells, smaller images.

Example
-------
>>> subsample("Published", "Real", {"Train": 110, "Valid": 10, "Test": 30}, image_size=64)
PosixPath('Real/7LungCancerDataset')
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from cytomad_lib.data.cells import CellFiles
from cytomad_lib.data.errors import DatasetError
from cytomad_lib.data.layouts import find_layout
from cytomad_lib.data.matfiles import write_mat


def subsample(data, out, counts, image_size=None, progress=False):
    """Write the first cells of each group into another folder, resized.

    Parameters
    ----------
    data : path
        A dataset in a published layout, or the folder above it.
    out : path
        Folder for the copy, outside the dataset.
    counts : dict of str to int
        Cells per group of each split; splits that are not named, or get 0, are left out.
    image_size : int, optional
        Height and width in pixels; by default as they are.
    progress : bool
        Show a progress bar over the files.

    Returns
    -------
    Path
        The copy: ``.mat`` files (v7.3), without the truth that a simulation may have.

    Raises
    ------
    DatasetError
        If the layout is not a published one, the copy exists already, or a file lacks cells.
    """
    layout, root = find_layout(data)
    copy = Path(out) / layout.root_folder
    if layout.described:
        raise DatasetError(
            f"{root} is described by a dataset.toml. Expected a published layout (lung or drug); "
            "give `train` fewer cells with --cells instead."
        )
    if copy.exists():
        raise DatasetError(f"{copy} exists already. Expected a new folder; give another --out.")
    splits = [
        CellFiles(root, split, cells_per_group=count, image_size=image_size)
        for split, count in counts.items()
        if count
    ]
    for files in splits:
        codes = np.unique(files.file_codes)
        for code in tqdm(codes, files.split, unit="group", disable=not progress):
            cells = files.read(np.flatnonzero(files.file_codes == code))
            group = files.groups[code]
            for kind, images in (("BF", cells.brightfield), ("QPI", cells.qpi)):
                stack = np.moveaxis(images[..., 0], 0, -1)
                variable = group.variable(files.split, kind)
                write_mat(copy / group.file(files.split, kind), {variable: stack})
    return copy
