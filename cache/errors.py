"""What can go wrong with a store."""

from .. import UpweightError


class StoreError(UpweightError):
    """A store is missing, damaged, incomplete, or not one of ours."""


class ForeignFile(StoreError):
    """A sound file that upweight did not write, and therefore never replaces."""


class StoreMismatch(StoreError):
    """A store was made under other settings than the ones asked for now."""
