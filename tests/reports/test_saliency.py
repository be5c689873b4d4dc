from dataclasses import replace

import numpy as np
import pytest
from upweight.influence.errors import ShapeError
from upweight.reports.runs import group_runs
from upweight.reports.saliency import Saliency, display_gradient, draw_saliency
from upweight.reports.settings import ReportSettings


def test_the_display_rule_by_hand():
    g = np.array([[[0.0, 1.0], [-1.0, 8.0]]])
    s = 3 * np.std([0.0, 1.0, -1.0, 8.0])
    shown, scale = display_gradient(g)
    assert scale == pytest.approx(s)
    np.testing.assert_allclose(shown, (1 + g / s) / 2)
    shown, scale = display_gradient(g, deviations=1.0)
    assert shown.max() == pytest.approx(1)  # 8 lies beyond one deviation and is clamped
    assert shown[0, 0, 0] == pytest.approx(0.5)


def test_every_image_has_its_own_scale_and_no_unit():
    g = np.random.default_rng(0).standard_normal((3, 5, 5))
    a, s = display_gradient(g)
    b, t = display_gradient(1000 * g)
    np.testing.assert_allclose(a, b)
    assert t == pytest.approx(1000 * s)


def test_no_gradient_is_grey():
    shown, scale = display_gradient(np.zeros((1, 2, 2)))
    assert scale == 0 and shown.ravel() == pytest.approx(0.5)


def test_scales_are_printed_and_tabled(comparison):
    (group,) = group_runs(comparison)
    view = Saliency(group, ReportSettings())
    table = view.frame()
    run = comparison[0]
    assert table["scale"][:10] == pytest.approx(3 * run.saliency.reshape(10, -1).std(axis=1, dtype=float), rel=1e-5)
    assert len(table) == 20
    figure = view.plot()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert sum(text.startswith("s = ") for text in said) == 20
    assert [text for text in said if text in ("natural", "robust")] == ["natural", "robust"]
    assert len(figure.axes[0].images) == 30
    assert figure.axes[0].images[10].get_array().shape == (28, 28, 3)  # at the size the network sees


def test_sources_with_other_queries_are_left_out(build):
    natural, robust = build("natural"), build("robust")
    (group,) = group_runs([natural, replace(robust, saliency_rows=robust.saliency_rows[::-1])])
    assert set(Saliency(group, ReportSettings()).frame()["source"]) == {"natural"}


def test_without_gradients_there_is_no_section(build):
    (group,) = group_runs([replace(build(), saliency=None)])
    assert not Saliency(group, ReportSettings())


def test_lengths_must_agree():
    images = np.zeros((2, 1, 4, 4))
    with pytest.raises(ShapeError, match="robust: 3 entries for 2 images"):
        draw_saliency(images, {"robust": np.zeros((3, 1, 4, 4))}, ["a", "b"])
    with pytest.raises(ShapeError, match="names"):
        draw_saliency(images, {"robust": np.zeros((2, 1, 4, 4))}, ["a"])
