"""What each dependency costs: run it in the environment to be measured.

    .venv/bin/python benchmarks/installation.py

It prints one row per direct dependency that is installed: the size of its own files, the disk space
that would be free without it (also that of packages that nothing else needs), and the processor
time to import it alone. docs/installation.md holds the table.
"""

import subprocess
import sys
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

KIT = "cytomad-lib"
IMPORT = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


@cache
def needs(name, extras=()):
    """Return the installed packages that a package needs by itself, with its extras."""
    found = set()
    for text in metadata.requires(name) or ():
        wanted = Requirement(text)
        if wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            found.add((canonicalize_name(wanted.name), tuple(sorted(wanted.extras))))
    return {(other, with_) for other, with_ in found if other in INSTALLED}


def reachable(starts):
    """Return the names of all packages that a set of (package, extras) brings along."""
    seen, waiting = set(), list(starts)
    while waiting:
        package = waiting.pop()
        if package not in seen:
            seen.add(package)
            waiting += needs(*package)
    return {name for name, _ in seen}


def megabytes(name):
    """Return the size of a package's files, compiled ones included."""
    files = [metadata.distribution(name).locate_file(file) for file in metadata.files(name) or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def import_seconds(name):
    """Return the processor time to import a package, the best of three; None if it has no name."""
    modules = [m for m, names in MODULES.items() if name in map(canonicalize_name, names)]
    modules = [m for m in modules if m.isidentifier() and not m.startswith("_")]
    if not modules:
        return None
    module = name.replace("-", "_") if name.replace("-", "_") in modules else modules[0]
    command = [sys.executable, "-c", IMPORT.format(module)]
    times = [subprocess.run(command, capture_output=True, text=True) for _ in range(3)]
    return min(float(done.stdout) for done in times) if not times[0].returncode else None


INSTALLED = {canonicalize_name(found.metadata["Name"]) for found in metadata.distributions()}
MODULES = metadata.packages_distributions()


def main():
    """Print the table."""
    direct = needs(KIT, tuple(metadata.metadata(KIT).get_all("Provides-Extra")))
    everything = reachable(direct)
    rows = []
    for package in direct:
        only_here = everything - reachable(direct - {package})
        saved = sum(map(megabytes, only_here))
        rows.append((saved, megabytes(package[0]), package[0], len(only_here - {package[0]})))
    print("| package | MB saved without it | own MB | import (s) | packages that only it needs |")
    print("|---|---|---|---|---|")
    for saved, own, name, brought in sorted(rows, reverse=True):
        seconds = import_seconds(name)
        shown = "" if seconds is None else f"{seconds:.1f}"
        print(f"| {name} | {saved:.0f} | {own:.0f} | {shown} | {brought or ''} |", flush=True)
    print(f"\nAll {len(everything)} packages: {sum(map(megabytes, everything)):.0f} MB")


if __name__ == "__main__":
    main()
