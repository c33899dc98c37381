"""Check a dataset: read every pixel, list all problems, and tell what the dataset can be used for.

Example
-------
>>> print(check_dataset("Dataset/7LungCancerDataset"))                 # doctest: +SKIP
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cytomad_lib.data import folders
from cytomad_lib.data.cells import CELLS_AT_ONCE, check_trainable
from cytomad_lib.data.description import DESCRIPTION, folded
from cytomad_lib.data.errors import DatasetError, ImageFileError
from cytomad_lib.data.layouts import SPLITS, Layout, find_layout, find_path
from cytomad_lib.data.stackfiles import matching, read_stack

# Phase of a cell in radians lies well inside this; degrees or nanometres do not.
PLAUSIBLE_PHASE = (-20.0, 60.0)

# Networks learn badly from values far from 1: the largest of a described dataset should lie here.
LARGEST_VALUES = (0.01, 100.0)
CELLS_LOOKED_AT = 20  # of each file, before a training


TABLE_COLUMNS = ["group", "batch", "class_name", "dose", "split", "cells", "height", "width"]
TABLE_COLUMNS += ["version", "truth", "status"]


@dataclass(eq=False)
class DatasetReport:
    """The findings of `check_dataset`.

    Attributes
    ----------
    table : DataFrame
        One row per group and split that is there: labels, cells, height, width, version of the
        files, truth (whether there is a QPI_TRUE file), status ("ok" or the problems).
    problems : list of str
        What must be corrected before the dataset can be used; equal problems share a line.
    notes : list of str
        What is worth knowing, also what the dataset cannot be used for, and why.
    uses : tuple of str
        What it can be used for: of "prediction", "training" (of a generator) and "batch removal".
    """

    layout: Layout
    root: Path
    table: pd.DataFrame
    problems: list[str]
    notes: list[str]
    uses: tuple[str, ...] = ()

    @property
    def ok(self):
        """Whether there is no problem."""
        return not self.problems

    def __str__(self):
        """Return the report as text."""
        status = self.table["status"].where(self.table["status"] == "ok", "problem")
        lines = [f"{self.layout.name} dataset in {self.root}"]
        lines += [self.table.assign(status=status).to_string(index=False)]
        lines += [f"Problem: {text}" for text in self.problems]
        lines += [f"Note: {text}" for text in self.notes]
        if self.ok:
            lines.append(f"No problem found. Can be used for: {', '.join(self.uses)}.")
        return "\n".join(lines)


CONFOUNDED = (
    "No class was measured in two batches, so nothing can tell what comes from the batch and what "
    "from the class. Expected at least one class, such as a control, in two batches; otherwise "
    "batch removal may remove the biology."
)


def check_dataset(folder: Path | str, progress: bool = False) -> DatasetReport:
    """Check a whole dataset, reading every pixel, and list all problems instead of the first.

    Parameters
    ----------
    folder : path
        The dataset's folder, or the one above it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DatasetReport

    Raises
    ------
    DatasetError
        If the folder holds no dataset at all.
    """
    layout, root = find_layout(folder)
    found, others, group_folders = folders.compare_folders(layout, root)
    remarks: dict[str, list] = defaultdict(list)  # see `_scan_pixels`
    ranges: dict[str, list] = defaultdict(list)
    there = {group: folders.splits_present(layout, root, group) for group in layout.groups}
    there = {group: splits for group, splits in there.items() if splits}
    used = [split for split in SPLITS if any(split in splits for splits in there.values())]
    rows, brightfields, without_target = [], [], []
    for group, splits in tqdm(there.items(), disable=not progress, unit="group"):
        lacking = [split for split in used if split not in splits and splits != ["Test"]]
        for split in lacking:  # Test alone can be predicted
            text = folders.missing_split_text(root, split, group, splits, there.values())
            found.append((find_path(root, group.folder), text))
        with_target = any(_has(root, group, split, "QPI") for split in splits)
        if not with_target:
            without_target.append(group)
        for split in splits:
            options = layout, root, group, split, with_target, remarks, ranges
            row, infos, errors = _check_files(*options)
            rows.append(row)
            found += errors
            if "BF" in infos and not errors:
                brightfields.append(infos["BF"])
    found += [(path, str(error)) for path, error in folders.size_errors(brightfields)]
    table = pd.DataFrame(rows, columns=TABLE_COLUMNS)
    table = table.astype({"cells": "Int64", "height": "Int64", "width": "Int64"})
    if not layout.doses:
        table = table.drop(columns="dose")
    if not there:
        found.append((root, folders.no_files_text(root, layout, SPLITS[0])))
    problems = _alike_together(root, found)
    notes = _folder_notes(root, there, others, group_folders)
    if not there:
        return DatasetReport(layout, root, table, problems, notes)
    notes += _dataset_notes(layout, table, ranges) + _value_texts(layout, ranges)
    notes += [f"{len(p)} file(s) {remark}. First: {p[0]}." for remark, p in remarks.items()]
    uses, limits = _find_uses(layout, root, table, without_target)
    return DatasetReport(layout, root, table, problems, notes + limits, () if problems else uses)


def _has(root, group, split, kind):
    return bool(matching(find_path(root, group.file(split, kind))))


def _alike_together(root, found):
    """Return a line for all problems that differ in the file and in numbers only."""
    alike = defaultdict(list)
    for path, text in found:
        alike[re.sub(r"\d+", "#", text.replace(str(path), ""))].append((path, text))
    lines = []
    for (_, text), *more in alike.values():
        places = folders.listed([path.relative_to(root).as_posix() for path, _ in more], most=2)
        lines.append(f"{text} Likewise {len(more)} more: {places}." if more else text)
    return lines


def _check_files(layout, root, group, split, with_target, remarks, ranges):
    """Check one group and split: its row of the table, its infos, its problems as (path, text)."""
    truth = "QPI_TRUE" in layout.contrasts and _has(root, group, split, "QPI_TRUE")
    infos, errors = folders.inspect_files(layout, root, group, split, truth, with_target)
    for kind, info in infos.items():
        try:
            _scan_pixels(layout, kind, info, remarks, ranges)
        except ImageFileError as error:
            errors.append((info.path, error))
    problems = [(path, str(error)) for path, error in errors]
    row = {
        "group": group.name,
        "batch": group.batch,
        "class_name": group.class_name,
        "dose": group.dose,
        "split": split,
        "version": "/".join(sorted({info.version for info in infos.values()})),
        "truth": truth,
        "status": "; ".join(text for _, text in problems) or "ok",
    }
    if infos:
        row["height"], row["width"], row["cells"] = next(iter(infos.values())).shape
    return row, infos, problems


def _scan_pixels(layout, kind, info, remarks, ranges):
    """Read all pixels, some cells at a time; note their range, and what is implausible.

    `remarks` gets the files of each remark, `ranges` the range of each file by the kind of image.
    """
    found, lowest, highest = set(), np.inf, -np.inf
    n_cells = info.shape[2]
    at_once = n_cells if info.whole else CELLS_AT_ONCE
    for start in range(0, n_cells, at_once):
        images = read_stack(info, slice(start, start + at_once))
        images *= layout.contrasts[kind].scale
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        if kind in layout.inputs and (low == high).any():
            name = layout.contrasts[kind].name
            found.add(f"have a {name} image with the same value everywhere")
        lowest, highest = min(lowest, low.min()), max(highest, high.max())
        if len(images) == images.shape[1] == images.shape[2] == n_cells:
            found |= _order_remarks(info, images)
    ranges[kind].append((lowest, highest, info))
    if info.version == "5":
        found.add("are MATLAB v5, so streaming reads them as a whole (v7.3 is faster)")
    for remark in found:
        remarks[remark].append(info.path)


def _order_remarks(info, images):
    """Look for turned axes where the shape does not tell: other cells differ more than pixels."""
    cells, *sides = (np.abs(np.diff(images, axis=axis)).mean() for axis in range(3))
    if max(sides) <= 1.2 * cells:
        return set()
    return {f"look like {folders.turned_text(info, int(np.argmax(sides)))}"}


def is_confounded(labels):
    """Say whether no class was measured in two batches.

    Parameters
    ----------
    labels : DataFrame
        With the columns `batch` and `class_name`, and at least one row.

    Returns
    -------
    bool
    """
    return bool(labels.groupby("class_name", observed=True)["batch"].nunique().max() < 2)


def value_warnings(cells, layout):
    """Find images with values from which a network learns badly, before a training.

    Parameters
    ----------
    cells : CellImages or CellFiles
        The first of each file are looked at.
    layout : Layout
        Of their dataset.

    Returns
    -------
    list of str
        A sentence for each kind of image, with the `scale` to write into `dataset.toml`; also for
        phases that are no radians.
    """
    ranges = defaultdict(list)
    rows = np.flatnonzero(cells.labels["cell"] < CELLS_LOOKED_AT)
    for start in range(0, len(rows), CELLS_AT_ONCE):
        part = cells.read(rows[start : start + CELLS_AT_ONCE])
        images = dict(zip(layout.inputs, np.moveaxis(part.brightfield, -1, 0), strict=True))
        if part.qpi is not None:
            images["QPI"] = part.qpi
        for kind, stack in images.items():
            ranges[kind].append((stack.min(), stack.max(), None))
    return _value_texts(layout, ranges)


def _value_texts(layout, ranges):
    """Return a sentence for each kind of image with implausible values.

    `ranges` has a list of (lowest, highest, info or None) for each kind.
    """
    texts = []
    for kind, found in ranges.items():
        contrast = layout.contrasts[kind]
        least, most = PLAUSIBLE_PHASE if contrast.unit == "rad" else (-np.inf, np.inf)
        strange = [row for row in found if row[0] < least or row[1] > most]
        if strange:
            texts.append(
                f"{contrast.name} has values outside {least:g} to {most:g}{_where(strange)}, which "
                "does not look like radians. Expected phases in rad; convert them and save again."
            )
        elif layout.described and contrast.unit != "rad":
            texts += _scale_texts(kind, contrast, found)
    return texts


def _scale_texts(kind, contrast, found):
    """Propose a scale if the largest number, as it is used, is far from 1."""
    largest = max(max(-low, high) for low, high, _ in found)
    low, high = LARGEST_VALUES
    if low <= largest <= high or largest == 0:
        return []
    scale = contrast.scale * 10.0 ** -np.floor(np.log10(largest))
    table = {"QPI": "[target]", "QPI_TRUE": "[truth]"}.get(kind, "[[input]]")
    far = [row for row in found if not low <= max(-row[0], row[1]) <= high]
    largest = f"{largest:,.0f}" if largest > 1 else f"{largest:.2g}"
    return [
        f"{contrast.name} has values up to {largest}{_where(far)}, from which networks learn "
        f"badly. Expected numbers of the order of 1; write scale = {scale:.3g} into the {table} of "
        f"{contrast.name} in {DESCRIPTION}."
    ]


def _where(rows):
    info = rows[0][2]
    return f" ({len(rows)} file(s), first {info.path})" if info else ""


def _folder_notes(root, there, others, group_folders):
    """Say which folders are left out: those of no group, and those of groups without files."""
    used = {folded(group.folder) for group in there}
    others, empty = ([p.relative_to(root).as_posix() for p in f] for f in (others, group_folders))
    empty = [name for name in empty if folded(name) not in used]
    texts = {
        "folder(s) are no part of the dataset and are ignored": others,
        "group(s) have a folder, but no files of any split, and are left out": empty,
    }
    return [f"{len(p)} {what}: {folders.listed(p)}." for what, p in texts.items() if p]


def _dataset_notes(layout, table, ranges):
    """Say which groups, splits and kinds of file are there."""
    notes = []
    if layout.described:
        notes.append(
            f"Goes in: {', '.join(layout.images['input'])}. Comes out: {layout.images['target']}."
        )
        notes += [_stored_text(layout.contrasts[kind], found) for kind, found in ranges.items()]
    n_groups = table["group"].nunique()
    if n_groups < len(layout.groups):  # of a described dataset: folders without files
        notes.append(f"{n_groups} of the {len(layout.groups)} groups of the layout are there.")
    if "Test" not in set(table["split"]):
        notes.append("No group has a Test split, which predict and evaluate take by default.")
    if table["truth"].any():
        name = layout.target.name if layout.described else "QPI_TRUE"
        notes.append(
            f"Batch-free truth ({name}) is there for {table['truth'].sum()} of the {len(table)} "
            f"groups and splits{'' if layout.described else ': these are simulated cells'}."
        )
    return notes


def _stored_text(contrast, found):
    """Say how one kind of image is stored: type, format, axes and range of values."""
    forms = sorted({_form_text(info) for *_, info in found})
    low, high = min(low for low, *_ in found), max(high for _, high, _ in found)
    low, high = (f"{float(value / contrast.scale):.6g}" for value in (low, high))
    return f"{contrast.name}: {'; '.join(forms)}; values {low} to {high}."


def _form_text(info):
    program = "MATLAB " if info.version in ("5", "7.3") else ""
    tiles = f", tiles of {info.tile} x {info.tile} pixels" if info.tile else ""
    return f"{info.dtype} in {program}{info.version} files, axes {info.axes}{tiles}"


def _find_uses(layout, root, table, without_target):
    """Return what a dataset can be used for, and a note for each thing that it cannot."""
    splits_of = table.groupby("group", sort=False)["split"].agg(set)
    reasons = folders.missing_names(layout, root)
    for split in ("Train", "Valid"):
        lacking = [name for name, splits in splits_of.items() if split not in splits]
        if len(lacking) == len(splits_of):
            reasons.append(folders.missing_split_text(root, split, None, (), ()))
        elif lacking:
            names = folders.listed(lacking)
            reasons.append(f"{len(lacking)} group(s) have no {split} split: {names}.")
    if without_target:
        names = folders.listed(group.name for group in without_target)
        what = f"{' and '.join(layout.images['input'])} alone, without {layout.target.name}"
        reasons.append(f"{len(without_target)} group(s) have {what}: {names}.")
    notes = [f"Not for training, only for prediction: {reason}" for reason in reasons]
    uses = ["prediction"] if reasons else ["prediction", "training", "batch removal"]
    train = table[table["split"] == "Train"]
    try:
        if len(train):
            check_trainable(train)
        if len(train) and is_confounded(train):
            raise DatasetError(CONFOUNDED)
    except DatasetError as error:
        uses, notes = uses[:2], [*notes, str(error)]
    return tuple(uses), notes
