"""Packages that not everyone needs: imported where they are used, with a message if missing.

Example
-------
>>> find_package("json", extra="export").__name__
'json'
"""

from importlib import import_module

from cytomad_lib.data.errors import CytomadError


class PackageError(CytomadError):
    """An optional package is not installed."""


def find_package(name, extra):
    """Import an optional package.

    Parameters
    ----------
    name : str
        Of the module.
    extra : str
        The group of optional packages that it belongs to, see `pyproject.toml`.

    Returns
    -------
    module

    Raises
    ------
    PackageError
        If it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise PackageError(
            f"The package {name.split('.')[0]} cannot be loaded ({error}). Expected it for what "
            f"you asked for; install it, as with `pip install '.[{extra}]'` in the kit's folder."
        ) from error
