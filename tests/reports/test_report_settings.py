import subprocess
import sys

import pytest
from upweight import UsageError
from upweight.reports.settings import ReportSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": 0},
        {"ranks": 4},
        {"neighbours": 0},
        {"pixels": -1},
        {"hits": 6},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"saliency_deviations": float("nan")},
        {"dpi": 10_000},
    ],
)
def test_settings_are_checked_at_birth(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ReportSettings(**wrong)


def test_settings_load_neither_torch_nor_matplotlib():
    code = "import sys, upweight.reports.settings; print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
