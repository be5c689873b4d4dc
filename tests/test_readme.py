"""The README is run, not only read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import upweight
from upweight import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", blocks[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Most helpful train examples for query 17" in done.stdout
    assert (tmp_path / "influence.h5").exists()


def test_python_of_the_guide_to_evaluation_runs(tmp_path):
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["auto", "LDS"], ["1e-05", "LDS"]]


@pytest.mark.parametrize("word", re.findall(r"upweight ([a-z][a-z-]+)", README))
def test_commands_of_the_readme_exist(word):
    assert word in cli.COMMANDS


def test_every_command_is_in_the_readme():
    table = README[README.index("| command | what it does |") :]
    assert all(f"`upweight {name}`" in table or f"`{name}`" in table for name in cli.COMMANDS)


def test_every_curvature_is_in_the_readme():
    curvatures = [name for name in upweight.__all__ if hasattr(getattr(upweight, name), "fit")]
    assert curvatures
    assert all(f"`{name}(" in README for name in curvatures)


def test_files_that_the_readme_names_exist():
    named = re.findall(r"`((?:docs|examples)/[\w./-]+|constraints\.txt)`", README)
    assert named
    assert all((ROOT / name).exists() for name in named)
