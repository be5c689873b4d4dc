"""The wheel: what is in it, and that it lives beside a user's own `models/` and `cache/`."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("influence", "models", "cache", "reports")
MODULES = (
    "__init__", "__main__", "attribute_commands", "averaging", "cli", "commands", "comparison", "design", "dry_run", "evaluation",
    "evaluation_bench", "evaluation_commands", "evaluation_sets", "evaluation_tables", "feature_commands",
    "features", "options", "mislabelling", "pipeline", "processes", "questions", "retraining", "scoring", "sweep",
    "sweep_plan", "sweep_tables", "sweep_work", "unrolling",
)  # fmt: skip
BUILD_INPUTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "py.typed")


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the checkout, as setuptools leaves a build folder behind."""
    source = tmp_path_factory.mktemp("source") / "upweight"
    source.mkdir()
    for name in BUILD_INPUTS:
        shutil.copy(ROOT / name, source / name)
    for module in ROOT.glob("*.py"):
        shutil.copy(module, source / module.name)
    for folder in (*FOLDERS, "tests", "benchmarks", "examples", "docs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "conftest.py").write_text("# a stray file at the root\n")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, ".",
        cwd=source)  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {"upweight/py.typed"} | {f"upweight/{stem}.py" for stem in MODULES}
    for folder in FOLDERS:
        wanted |= {f"upweight/{file.relative_to(ROOT)}" for file in (ROOT / folder).glob("*.py")}
    wanted |= {f"upweight/{file.relative_to(ROOT)}" for file in (ROOT / "reports/templates").iterdir()}
    wanted |= {f"upweight/{file.relative_to(ROOT)}" for file in (ROOT / "models/sources").glob("*.safetensors")}
    wanted |= {f"upweight/{file.relative_to(ROOT)}" for file in (ROOT / "models/sources").glob("*.json")}
    assert held == wanted
    # said again by name, because the lists above would be empty if the folders were
    assert any(name.startswith("upweight/reports/templates/") for name in held)
    assert {"upweight/models/sources/natural.safetensors", "upweight/models/sources/robust.safetensors"} <= held


def test_wheel_metadata_names_licence_command_and_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (commands,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(metadata).decode()
        assert "upweight = upweight.cli:main" in archive.read(commands).decode()
    assert "License-Expression: MIT" in text
    required = [
        line.split()[1] for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra" not in line
    ]
    assert any(name.startswith("torch>") for name in required)
    assert not any(name.startswith("functorch") for name in required)  # its package pins torch below 2.1


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Python of a new environment that has the wheel, and sees this environment's other packages.

    A venv made from a venv does not see its parent, so a .pth file names the parent's folder. Lines of .pth files inside
    that folder are not read then: an editable install of upweight there cannot stand in for the wheel. The wheel goes in
    first, as pip would take the parent's copy for the wanted version.
    """
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    scheme = {"base": str(home), "platbase": str(home)}
    python = Path(sysconfig.get_path("scripts", scheme="venv", vars=scheme)) / Path(sys.executable).name
    if not python.exists():
        python = python.with_name("python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars=scheme))
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_imports_beside_a_users_own_folders(installed, tmp_path):
    for folder in ("models", "cache", "influence", "reports"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(f"MINE = '{folder} of the user'\n")
    (tmp_path / "cli.py").write_text("MINE = 'cli of the user'\n")
    code = """
import pathlib, sys
import models, cache, influence, reports, cli, upweight
for module in (models, cache, influence, reports, cli):
    assert module.MINE.endswith("of the user"), module
home = pathlib.Path(upweight.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), home
for name in upweight.__all__:
    where = sys.modules[getattr(upweight, name).__module__].__file__
    assert pathlib.Path(where).resolve().is_relative_to(home.parent), where
import torch
X, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
print(upweight.attribute(torch.nn.Linear(4, 2), (X, y)).matrix.shape)
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "(4, 4)"


@pytest.mark.parametrize("words", [("-m", "upweight"), ("-c", "from upweight.cli import main; main()")])
def test_wheel_has_a_command(installed, tmp_path, words):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')\n")
    assert "compare" in run(installed, *words, "--help", cwd=tmp_path)


def test_console_script_is_installed(installed, tmp_path):
    (script,) = installed.parent.glob("upweight*")
    assert "attribute" in run(script, "--help", cwd=tmp_path)


def test_shipped_sources_open_from_the_wheel(installed, tmp_path):
    code = "from upweight.models.checkpoints import load_model; print(load_model('robust').spec.num_classes)"
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "10"
