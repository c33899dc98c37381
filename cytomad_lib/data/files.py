"""Files that are either whole or not there.

Example
-------
>>> with written_beside("results/scores.csv") as path:
...     table.to_csv(path)
"""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path):
    """Give a temporary path beside `path`, which becomes `path` only if all goes well.

    The folder is made if needed. The temporary name keeps the ending of the real one, as many
    writers go by it.

    Parameters
    ----------
    path : path
        A file that is there is replaced.

    Yields
    ------
    pathlib.Path
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:  # also when the user presses Ctrl-C
        beside.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """Write a text file in one piece, with the same line ends on every system."""
    with written_beside(path) as beside:
        beside.write_bytes(text.encode("utf-8"))


def write_table(table, path, **options):
    """Write a DataFrame as CSV in one piece; the options are those of `to_csv`."""
    with written_beside(path) as beside:
        table.to_csv(beside, **options)
