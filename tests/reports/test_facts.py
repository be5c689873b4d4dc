from types import SimpleNamespace

from upweight.reports.facts import warnings_of


def group(**warnings):
    runs = [
        SimpleNamespace(
            name=name, scores={str(i): SimpleNamespace(meta={"warnings": [text]}) for i, text in enumerate(texts)}
        )
        for name, texts in warnings.items()
    ]
    return SimpleNamespace(runs=runs)


def test_a_warning_that_differs_in_its_numbers_is_said_once_with_their_range():
    slope = "With 0.0005 there is a slope of {} lengths."
    found = warnings_of([
        group(a=[slope.format("0.11"), slope.format("0.9")], b=[slope.format("0.04")]),
        group(c=["3 of 40 are zero.", "No number."], d=["4 of 40 are zero."]),
    ])
    assert found == [
        {"text": "With 0.0005 there is a slope of 0.04 to 0.9 lengths.", "runs": ["a", "b"]},
        {"text": "3 of 40 are zero.", "runs": ["c"]},
        {"text": "No number.", "runs": ["c"]},
        {"text": "4 of 40 are zero.", "runs": ["d"]},
    ]
