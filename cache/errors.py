"""What can go wrong with a store."""

from .. import UpweightError


class StoreError(UpweightError):
    """A store is missing, damaged, incomplete, or not one of ours."""


class StoreMismatch(StoreError):
    """A store was made under other settings than the ones asked for now."""
