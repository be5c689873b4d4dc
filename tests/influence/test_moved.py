"""Losses at moved logits: held to 60 digits of the decimal module, from margins of -300 to 40."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from upweight.influence.moved import moved_losses
from upweight.influence.rows import cross_entropy

EPS = 2.0**-52


def exact(z, y, delta):
    """l(z + delta) - l(z), and the size of what a sum over the classes has to add up to it, relative to 1."""
    with localcontext() as context:
        context.prec = 80  # a change may be 1e-30 of 1
        z, delta = [Decimal(v) for v in z], [Decimal(v) for v in delta]
        odds = [(a - z[y]).exp() for a in z]
        moved = [(a + d - z[y] - delta[y]).exp() for a, d in zip(z, delta, strict=True)]
        change = (sum(moved) / sum(odds)).ln()
        added = sum(abs(m - o) for m, o in zip(moved, odds, strict=True)) / sum(moved)
        return float(change), float(added)


def assert_exact(z, y, moves):
    got = moved_losses(
        torch.tensor([z], dtype=torch.float64), torch.tensor([y]), torch.tensor([moves], dtype=torch.float64)
    )
    for value, move in zip(got[0].tolist(), moves, strict=True):
        want, added = exact(z, y, move)
        # rounding: of the terms that are added, and of the logits, each of which shifts the change by as much
        largest = max(1.0, *(abs(v) for v in [*z, *move]))
        assert abs(value - want) <= 4 * EPS * largest * min(1.0, added) + 1e-70, (value, want)


logit = st.floats(-40, 40)
move = st.one_of(st.just(0.0), st.floats(-3, 3), st.floats(-1e-9, 1e-9), st.floats(-900, 900))
move = move.map(lambda d: d if abs(d) > 1e-20 else 0.0)  # what 80 digits can tell from 1 with digits to spare


@given(data=st.data(), C=st.integers(2, 6), margin=st.sampled_from([-300.0, -60.0, -20.0, 0.0, 5.0, 36.0, 40.0]))
def test_change_has_every_digit_that_its_terms_have(data, C, margin):
    y = data.draw(st.integers(0, C - 1))
    z = data.draw(st.lists(st.floats(-3, 3), min_size=C, max_size=C))
    z[y] += margin
    moves = data.draw(st.lists(st.lists(move, min_size=C, max_size=C), min_size=1, max_size=4))
    assert_exact(z, y, moves)


@pytest.mark.parametrize("margin", [-300.0, -40.0, 0.0, 20.0, 40.0])
@pytest.mark.parametrize("step", [1e-12, -1e-6, 0.1, -0.6, 1.0, -30.0, 400.0, -800.0])
def test_two_classes_at_every_margin(margin, step):
    """Of a fitted example the loss itself is 1e-18, and its change is a part of that."""
    want, _ = exact([margin, 0.0], 0, [step, 0.0])
    got = moved_losses(
        torch.tensor([[margin, 0.0]], dtype=torch.float64),
        torch.tensor([0]),
        torch.tensor([[[step, 0.0]]], dtype=torch.float64),
    )
    assert_allclose(float(got), want, rtol=1e-13, atol=1e-305)


@given(z=st.lists(logit, min_size=3, max_size=3), shift=st.floats(-100, 100))
def test_a_common_shift_changes_nothing(z, shift):
    got = moved_losses(
        torch.tensor([z], dtype=torch.float64), torch.tensor([1]), torch.full((1, 1, 3), shift, dtype=torch.float64)
    )
    assert not got.any()


def test_every_query_keeps_its_own_label_and_moves():
    g = torch.Generator().manual_seed(0)
    z, delta = torch.randn(5, 4, generator=g).double(), 2 * torch.randn(5, 7, 4, generator=g).double()
    y = torch.tensor([0, 3, 1, 2, 3])
    got = moved_losses(z, y, delta)
    for t in range(5):
        moved = cross_entropy(z[t] + delta[t], y[t].expand(7))
        assert_allclose(got[t], moved - cross_entropy(z[t : t + 1], y[t : t + 1]), rtol=1e-12, atol=1e-14)


def test_nothing_overflows():
    z = torch.tensor([[300.0, -300.0, 0.0]]).double()
    delta = torch.tensor([[[-1e6, 1e6, 0.0], [1e6, -1e6, 0.0]]]).double()
    assert_allclose(moved_losses(z, torch.tensor([0]), delta), [[2e6 - 600, -math.exp(-300)]], rtol=1e-13)
