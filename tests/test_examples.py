"""The examples run as their own words say."""

import importlib.util
import re
import shlex
from pathlib import Path

import tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


def commands(text):
    """The indented lines of a docstring, those that end in a backslash put together."""
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", text.replace("\\\n", " "), flags=re.MULTILINE)]


def test_own_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "own_network.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    script, attribute, query = commands(example.__doc__)
    assert script[:2] == ["python", "examples/own_network.py"]
    assert attribute[0] == query[0] == "upweight"
    example.main(Path(script[2]))
    tiny.done(*attribute[1:])
    printed = tiny.done(*query[1:])
    assert printed.startswith("Most helpful train examples for query 17")
    assert (tmp_path / "own/query-17.png").stat().st_size > 1000
