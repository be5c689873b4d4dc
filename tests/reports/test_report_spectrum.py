from dataclasses import replace

import numpy as np
from upweight.reports.runs import group_runs
from upweight.reports.spectrum import Spectra


def test_facts_and_sensitivity_of_every_run_and_variant(comparison):
    (group,) = group_runs(comparison)
    table = Spectra(group).frame()
    assert len(table) == 6 * 3
    spectrum = comparison[2].scores["damped"].spectrum
    (row,) = [r for r in table.rows() if (r["run"], r["variant"]) == (comparison[2].name, "damped")]
    assert (row["damping"], row["lambda_max"], row["condition"]) == (5e-4, spectrum.lambda_max, spectrum.condition)
    assert row["top1_changed_at_10x"] == spectrum.sensitivity["top1_changed_at_10x"]


def test_eigenvalues_are_drawn_with_cutoff_and_damping(build):
    run = build(negative=15)
    (group,) = group_runs([run])
    view = Spectra(group)
    e = run.main.spectrum.eigenvalues
    np.testing.assert_array_equal(view.eigenvalues()["eigenvalue"], e)
    ax = view.plot().axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(lines["natural: 195 eigenvalues"].get_ydata(), e[e > 0])
    np.testing.assert_array_equal(lines["natural: 15 negative"].get_ydata(), -e[e < 0])
    np.testing.assert_array_equal(lines["natural: 15 negative"].get_xdata(), np.flatnonzero(e < 0) + 1)
    levels = {
        label.split(":")[0]: line.get_ydata()[0]
        for label, line in lines.items()
        if label.startswith(("cutoff", "damping"))
    }
    assert levels == {"cutoff, natural": run.main.spectrum.cutoff, "damping": 5e-4}


def test_scores_without_a_curvature_have_an_empty_table(build):
    run = build()
    for scores in run.scores.values():
        scores.spectrum = None
    (group,) = group_runs([run])
    view = Spectra(group)
    assert not view and len(view.frame()) == 0 and "variant" in view.frame().columns


def test_facts_stay_where_eigenvalues_were_not_kept(build):
    run = build()
    for scores in run.scores.values():
        scores.spectrum = replace(scores.spectrum, eigenvalues=None)
    (group,) = group_runs([run])
    view = Spectra(group)
    assert not view and len(view.frame()) == 3
