"""The command line in a real terminal: progress, an interrupt, and going on from there."""

import json
import os
import re
import signal
import sys
import time

import pytest
import tiny
from tiny import refused


def in_terminal(words, interrupt_when=None):
    """Run a command in a terminal of 80 columns: exit code and all that was shown."""
    import fcntl
    import pty
    import struct
    import termios

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background hands down that it is ignored
        os.execv(sys.executable, [sys.executable, "-m", "upweight", *map(str, words)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    shown, asked = b"", -10.0
    while True:
        try:
            got = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not got:
            break
        shown += got
        # Python drops an interrupt that arrives inside a destructor: ask again, as a person would
        if interrupt_when is not None and interrupt_when(shown) and time.monotonic() - asked > 2:
            os.write(terminal, b"\x03")
            asked = time.monotonic()
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are there on POSIX systems alone")
def test_terminal_shows_progress_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    from upweight.models import training

    run, epochs = tmp_path / "run", 3000
    words = ("fine-tune", "--data", tiny.data(), "--n", 20, "--k", 1, "--epochs", epochs, "--out", run)
    partial = run / "fine-tune.partial.safetensors"
    code, shown = in_terminal(words, interrupt_when=lambda shown: b"left" in shown and partial.exists())
    assert code == 130
    assert re.search(rf"fine-tune .*\d+/{epochs}.*(left|in all)", shown), shown
    last = shown.rsplit("\r\n", 2)[-2]
    assert last.endswith(
        "upweight fine-tune: interrupted; what was finished is kept, and the same command goes on from there"
    )
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is shown again"
    assert "Warning" not in shown and "Traceback" not in shown
    assert partial.exists() and not (run / "run.json").exists()

    begun = []
    real = training.run_epoch

    def few(*given):
        begun.append(1)
        if len(begun) > 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "run_epoch", few)
    before = json.loads(read_header(partial))["epoch"]
    assert refused(130, *words)
    assert before >= 1
    assert json.loads(read_header(partial))["epoch"] == before + 3


def read_header(partial):
    from upweight.models.checkpoints import read_tensors

    return read_tensors(partial)[1]["upweight-partial-fit"]
