"""Tiny runs made once by the command line, that several test files look at; nothing in them may be changed."""

import atexit
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from upweight.cli import main

SEED = 20_000_000
N, QUERIES = 40, 30
NAMES = tuple(f"{source}-k{k}-s{SEED}" for source in ("natural", "robust") for k in (0, 1))

FACTORY = """
from torch import nn


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))


def not_a_module():
    return 3
"""


def typed(*words):
    """Run the command line here: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def done(*words):
    """Run a command that must succeed."""
    ran = typed(*words)
    assert ran.code == 0, ran.err
    assert ran.err == "", "nothing but the answer where nobody watches"
    return ran.out


def refused(code, *words):
    """Run a command that must fail with this code: its one sentence."""
    ran = typed(*words)
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert ran.err.startswith(f"upweight {words[0]}: ")
    assert ran.err.count("\n") == 1 and "Traceback" not in ran.err
    return ran.err


def strict_json(text):
    """The one JSON object that a text is, without NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    assert text.count("\n") == 1
    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def state(folder):
    """Content and time of every file below a folder."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


@cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="upweight-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def data() -> Path:
    """A few of scikit-learn's digits: 60 to draw from, 30 to ask."""
    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)
    path = folder() / "digits.npz"
    np.savez(
        path,
        x=x[:60],
        y=digits.target[:60],
        x_test=x[1000 : 1000 + QUERIES],
        y_test=digits.target[1000 : 1000 + QUERIES],
    )
    return path


@cache
def compare_words() -> tuple:
    return (
        *("compare", "--data", data(), "--n", N, "--epochs", 2, "--seeds", 1, "--k", 0, 1),
        *("--ranks", 5, "--neighbours", 1, "--pixels", 10, "--dpi", 30, "--device", "cpu"),
    )


@cache
def comparison() -> Path:
    """What `upweight compare` leaves: two sources, k = 0 and 1, one seed."""
    out = folder() / "comparison"
    done(*compare_words(), "--out", out)
    return out


def run(source="natural", k=0) -> Path:
    return comparison() / "runs" / f"{source}-k{k}-s{SEED}"


@cache
def named() -> Path:
    """A run on an image folder, whose classes have names."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = folder() / "pets"
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (images / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / part / name / f"{i}.png")
    out = folder() / "named"
    done("fine-tune", "--data", images, "--n", 6, "--epochs", 1, "--out", out)
    done("attribute", out)
    return out


@cache
def own() -> SimpleNamespace:
    """A network that upweight knows nothing about, its files, and the words that score it."""
    home = folder() / "own"
    home.mkdir()
    (home / "tiny_own_network.py").write_text(FACTORY)
    sys.path.append(str(home))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    save_file(model.state_dict(), home / "weights.safetensors")
    with np.load(data()) as held:
        np.savez(home / "train.npz", x=held["x"], y=held["y"])
        np.savez(home / "queries.npz", x=held["x_test"], y=held["y_test"])
        arrays = {name: held[name] for name in held.files}
    words = (
        *("attribute", "--model", "tiny_own_network:make", "--weights", home / "weights.safetensors"),
        *("--train", home / "train.npz", "--queries", home / "queries.npz"),
    )
    return SimpleNamespace(home=home, model=model.eval(), arrays=arrays, words=words)


@cache
def own_run() -> Path:
    out = own().home / "run"
    done(*own().words, "--out", out)
    return out


def lived_source(folder):
    """A source for four classes whose batch-norm layers are not those it was born with."""
    import torch
    from torch import nn
    from upweight.models.checkpoints import load_model, save_model
    from upweight.models.zoo import build

    torch.manual_seed(0)
    model = build("small_resnet", num_classes=4, mean=(0.3,), std=(0.35,)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 1, 28, 28))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    path = folder / "mine.safetensors"
    save_model(path, model, {})
    return load_model(path)
