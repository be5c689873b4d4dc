"""What can go wrong with the files a user brings, and with training on them."""

from .. import UpweightError


class CheckpointError(UpweightError):
    """A weight file is missing, damaged, of an unknown kind, or does not fit the architecture."""


class DataError(UpweightError):
    """A data set is missing, empty, or holds something that cannot be trained on."""


class RunMismatch(UpweightError):
    """A run folder holds results that were made under other settings."""


class TrainingError(UpweightError):
    """A fit diverged: its loss is no longer a finite number."""


class NonDeterministicError(TrainingError):
    """The same training twice gave different weights."""
