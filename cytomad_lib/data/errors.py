"""The errors that a user's files and folders can cause.

All of them are a `CytomadError`, so a program can catch that one class and print a clean message.
"""


class CytomadError(ValueError):
    """Something in the user's files, folders or arguments that the user can correct."""


class DatasetError(CytomadError):
    """A dataset folder, or the cells asked from it, is not what it should be."""


class ImageFileError(CytomadError):
    """An image file is missing, damaged, unsafe, or does not hold an image stack."""


class SimulationError(CytomadError):
    """Something was asked of the simulator that it cannot make."""


class RunError(CytomadError):
    """A run's folder does not hold what was expected."""


class WriteError(CytomadError):
    """A file cannot be written: no room, no permission, or a drive that is gone."""
