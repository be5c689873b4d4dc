"""What can go wrong with the files a user brings."""

from .. import UpweightError


class CheckpointError(UpweightError):
    """A weight file is missing, damaged, of an unknown kind, or does not fit the architecture."""


class DataError(UpweightError):
    """A data set is missing, empty, or holds something that cannot be trained on."""
