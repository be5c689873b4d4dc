"""Progress: a function as it is, bars on a terminal, silence elsewhere."""

import io
import re
import sys

import pytest
from upweight.reports.progress import Bars, reporting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch):
    """A terminal in the place of standard error; in the test itself, as pytest puts its own there before each phase."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_function_is_used_as_it_is():
    def tell(stage, done, total):
        raise AssertionError

    with reporting(tell) as report:
        assert report is tell


@pytest.mark.parametrize("progress", [None, False])
def test_silence_where_it_is_asked_for(monkeypatch, progress):
    terminal = terminal_of(monkeypatch)
    with reporting(progress) as report:
        assert report is None
    assert terminal.getvalue() == ""


def test_silence_where_nobody_watches(capsys):
    with reporting(True) as report:
        assert report is None
    assert capsys.readouterr() == ("", "")


def test_bars_show_stage_units_and_time_left(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with reporting(True) as report:
        report("1/2 natural-k0-s20000000: fine-tune [x]", 0, 20)
        report("1/2 natural-k0-s20000000: fine-tune [x]", 7, 20)
    shown = plain(terminal)
    assert re.search(r"1/2 natural-k0-s20000000: fine-tune \[x\] +[━╸╺]+ +7/20 +(--:--|\d\d:\d\d) left", shown)
    assert max(len(line) for line in re.split(r"[\r\n]", shown)) <= 80


def test_long_names_are_cut_and_numbers_are_not(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with reporting(True) as report:
        report("12/12 " + "a-very-long-name-of-a-source" * 5, 3, 4)
    assert re.search(r"12/12 a-very.*… [━╸╺]+ 3/4 .* left", plain(terminal))


def test_only_a_stage_that_took_its_time_leaves_a_line(monkeypatch):
    terminal = terminal_of(monkeypatch)
    clock = iter([0.0, 0.2, 1.0, 9.0])
    monkeypatch.setattr("upweight.reports.progress.monotonic", lambda: next(clock))
    with reporting(True) as report:
        report("quick", 1, 1)
        after_quick = terminal.getvalue()
        report("slow", 1, 1)
    assert after_quick.endswith("\x1b[2K")  # wiped
    assert re.search(r"slow .* 1/1 \S+ in all *\n$", plain(terminal))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_terminal_is_as_it_was_after_an_error(monkeypatch, error):
    terminal = terminal_of(monkeypatch)
    with pytest.raises(error), reporting(True) as report:
        report("fit", 1, 9)
        raise error
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")  # the cursor is shown again


def test_closing_twice_is_harmless(monkeypatch):
    terminal_of(monkeypatch)
    bars = Bars()
    bars("fit", 1, 9)
    bars.close()
    bars.close()


def plain(terminal):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
