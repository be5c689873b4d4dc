"""What curvatures of low rank and projected rows will cost is told before they are fitted."""

from __future__ import annotations

import pytest
import upweight
from low_rank import digits_like
from upweight import Lanczos, Nystroem, Projected


@pytest.mark.parametrize(
    ("curvature", "size", "form"),
    [
        (Nystroem(rank=30, damping=[0.1, 0.2]), 30, "primal"),
        (Lanczos(rank=20), 20, "primal"),
        (Lanczos(rank=20, curvature="hessian", damping=1.0), 20, "primal"),
        (Projected(width=64), 64, "primal"),
        (Projected(width=400), 120, "dual"),
        (Projected(rows="logits", width=100, draw="orthogonal"), 100, "primal"),
    ],
)
def test_stages_and_matrix(curvature, size, form):
    problem = digits_like()
    found = upweight.estimate(problem.model, problem.train, problem.queries, parameters="all", curvature=curvature)
    assert (found.matrices[0].size, found.matrices[0].form) == (size, form)
    names = [stage.name for stage in found.stages]
    first = "project the rows" if isinstance(curvature, Projected) else "products with the curvature"
    assert names.count(first) == 1  # of two dampings the second takes it over
    assert names.count("scores") == len(found.matrices)
    assert all(0 < stage.seconds < 60 for stage in found.stages), found.to_text()
    assert found.fits and "not counted here" not in found.to_text()


def test_what_does_not_fit_has_a_mend():
    problem = digits_like()
    sides = problem.model, problem.train, problem.queries
    found = upweight.estimate(*sides, parameters="all", curvature=Nystroem(rank=400), memory="1MB")
    assert not found.fits and "lower the rank" in found.to_text()
    found = upweight.estimate(*sides, parameters="all", curvature=Projected(width=4000), memory="1MB")
    assert not found.fits and "lower the width" in found.to_text()
