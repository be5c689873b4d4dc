"""The facts of a curvature survive the way through JSON."""

import json

import numpy as np
from numpy.testing import assert_array_equal
from upweight.influence.spectrum import Spectrum


def test_facts_read_back():
    spectrum = Spectrum(
        size=4, rank=3, cutoff=1e-9, damping=0.0, lambda_max=2.0, lambda_min=-0.1, smallest_kept=0.1, condition=20.0,
        trace_kept=0.99, negative=1, negative_trace=0.03, sensitivity={"top1_changed_at_0.1x": 0.25},
        eigenvalues=np.array([2.0, 0.5, 1e-12, -0.1]),
    )  # fmt: skip
    facts = json.loads(json.dumps(spectrum.to_dict()))
    assert "eigenvalues" not in facts
    again = Spectrum.from_dict(facts, spectrum.eigenvalues)
    assert again.to_dict() == spectrum.to_dict()
    assert_array_equal(again.eigenvalues, spectrum.eigenvalues)
    assert Spectrum.from_dict(facts).eigenvalues is None
