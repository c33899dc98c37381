"""Fetch public measured data, each file verified by its hash.

Four datasets can be fetched: `lung` and `drug`, the published images of CytoMAD; `jurkat`, cells
from imaging flow cytometry; `phenotypes`, tables of the CytoMAD group (`cytomad_lib.data.public`
describes the last two). Each comes from one commit of a repository. The tables beside this module
list the files with their git blob SHA-1; `cytomad_lib.data.fetch` fetches and verifies them.

    >>> from cytomad_lib.data.download import download_dataset, published_files
    >>> len(published_files("lung")), len(published_files("drug"))
    (126, 216)
    >>> list(published_files("lung", split="Test", groups=["Batch1/H69"]))[0]
    '7LungCancerDataset/Batch1/H69/Test/H69_BF.mat'
    >>> download_dataset("lung", "Published", groups=["Batch1/H69"])  # doctest: +SKIP
    PosixPath('Published/7LungCancerDataset')
"""

import csv
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from cytomad_lib.data.fetch import DownloadError, download_files
from cytomad_lib.data.files import write_text
from cytomad_lib.data.layouts import NOTES_FILE, SPLITS, is_simulated
from cytomad_lib.data.public import NOTICE, SOURCES, without_cut


def download_dataset(
    name: str,
    out: Path | str,
    split: str | None = None,
    groups: Sequence[str] | None = None,
    base_url: str | None = None,
    workers: int = 4,
    progress: bool = False,
    report: Callable[[str], object] | None = None,
    raw: bool = False,
) -> Path:
    """Fetch one dataset, or resume an interrupted download.

    Source: the repositories in `cytomad_lib.data.public.SOURCES`.

    Parameters
    ----------
    name : "lung", "drug", "jurkat" or "phenotypes"
        Which dataset.
    out : path
        Folder in which the dataset's folder is made.
    split : "Train", "Valid" or "Test", optional
        Of lung and drug only. All three by default.
    groups : list of str, optional
        Names such as ``"Batch1/H69"``, ``"B1/Docetaxel/D3"``, ``"Experiment_1/G1/CP0008"`` or
        ``"gemcitabine"``, or how such names begin: ``"Experiment_1"``. All by default.
    base_url : str, optional
        A mirror: what comes before the paths of the repository in its URLs.
    workers : int
        Files fetched at the same time, 1 to 16.
    progress : bool
        Show a progress bar over the files.
    report : callable, optional
        Is given lines on what was done, for example `print`.
    raw : bool
        Keep the montages of jurkat after the cells are cut from them.

    Returns
    -------
    root : pathlib.Path
        The dataset's folder.

    Raises
    ------
    DownloadError
        If there is no such dataset, split or group, the folder holds simulated data, the server
        cannot be reached or lacks a file, or a file stays damaged.
    OSError
        If a file cannot be written, for example because the disk is full.
    """
    rows, source = _find_rows(name, split, groups), SOURCES[name]
    root = Path(out) / source.folder
    if is_simulated(root):
        raise DownloadError(
            f"{root} holds simulated data ({NOTES_FILE} is in it). Expected a separate folder for "
            "the published data, so that the two do not mix; choose another --out (argument out)."
        )
    if source.finish and not raw:
        rows = without_cut(root, rows)
    files = {row["path"]: row["git_blob_sha1"] for row in rows}
    places = {row["path"]: row["place"] for row in rows}
    done = download_files(files, out, base_url or source.url, workers, progress, places=places)
    lines = [str(done), *(source.finish(root, raw) if source.finish else [])]
    if source.licence:
        write_text(root / NOTICE, source.notice + "\n")
        lines.append(source.notice)
    if report:
        for line in lines:
            report(line)
    return root


def published_files(name, split=None, groups=None):
    """List the files of a dataset; the arguments are those of `download_dataset`.

    Returns
    -------
    dict of str to str
        The git blob SHA-1 of each file, by its path under the user's folder.

    Raises
    ------
    DownloadError
        If there is no such dataset, split or group.
    """
    return {row["path"]: row["git_blob_sha1"] for row in _find_rows(name, split, groups)}


def read_table(name):
    """Read the table of a dataset's files: rows of group, split, path, place, git_blob_sha1."""
    text = resources.files("cytomad_lib.data").joinpath(f"{name}_files.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def _find_rows(name, split, groups):
    """Return the rows of the table that the caller asks for."""
    if name not in SOURCES:
        raise DownloadError(f"The dataset is {name!r}; expected {' or '.join(SOURCES)}.")
    if split not in (None, *SPLITS):
        raise DownloadError(
            f"The split is {split!r}; expected {', '.join(SPLITS)}, or none for all of them."
        )
    rows = read_table(name)
    known = list(dict.fromkeys(row["group"] for row in rows))
    chosen = known if groups is None else [groups] if isinstance(groups, str) else list(groups)
    rows_of = {group: [row for row in rows if _is_in(row["group"], group)] for group in chosen}
    unknown = [group for group in chosen if not rows_of[group]]
    if unknown or not chosen:
        raise DownloadError(
            f"The groups are {', '.join(map(repr, unknown)) or 'an empty list'}. "
            f"The {name} dataset has these: {', '.join(known)}."
        )
    if split and not rows[0]["split"]:
        raise DownloadError(f"{name} has no splits to choose from. Leave --split (split) out.")
    wanted = {row["path"] for group in chosen for row in rows_of[group]}
    return [row for row in rows if row["path"] in wanted and split in (None, row["split"])]


def _is_in(group, chosen):
    return f"{group}/".startswith(f"{chosen}/")
