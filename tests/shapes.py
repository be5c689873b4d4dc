"""Annotations enforced in a test run: `pytest --jaxtyping-packages=upweight.influence,shapes.enforced`."""

from beartype import BeartypeConf, beartype

enforced = beartype(
    conf=BeartypeConf(is_pep484_tower=True)
)  # a whole number where a float is asked for is none the worse
