"""Small comparisons on the handwritten digits, with scores made of random features: plausible, quick, and the same each time."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from upweight.influence.examples import Examples
from upweight.influence.scores import Scores
from upweight.influence.spectrum import Spectrum
from upweight.reports.runs import RunView

CLASSES = [str(c) for c in range(10)]


def examples(pixels, labels, index, weights, head, sharpness):
    """What a network of one random layer would leave behind."""
    features = np.maximum(pixels.reshape(len(pixels), -1) @ weights, 0)
    logits = sharpness * features @ head
    q = np.exp(logits - logits.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    chosen = q[np.arange(len(q)), labels]
    return Examples(
        index=index,
        label=labels,
        prediction=logits.argmax(1),
        loss=-np.log(chosen),
        residual=q - np.eye(10)[labels],
        features=features.astype(np.float32),
    )


def spectrum(rng, damping, negative=0):
    e = np.sort(np.concatenate([np.geomspace(0.8, 1e-9, 180), -np.geomspace(1e-5, 1e-8, negative)]))[::-1]
    e = e * rng.uniform(0.7, 1.4)
    cutoff = 0.0 if damping else 4e-8 * e[0]
    kept = np.abs(e) > cutoff
    return Spectrum(
        size=len(e),
        rank=int(kept.sum()),
        cutoff=cutoff,
        damping=damping,
        lambda_max=float(e[0]),
        lambda_min=float(e[-1]),
        smallest_kept=float(np.abs(e[kept] + damping).min()),
        condition=float((e[0] + damping) / np.abs(e[kept] + damping).min()),
        trace_kept=float(np.abs(e[kept]).sum() / np.abs(e).sum()),
        negative=int((e < -cutoff).sum()),
        negative_trace=float(np.abs(e[e < 0]).sum() / np.abs(e).sum()),
        sensitivity={
            "top1_changed_at_0.1x": 0.06,
            "top1_changed_at_10x": 0.11,
            "top5_changed_at_0.1x": 0.04,
            "top5_changed_at_10x": 0.09,
        },
        eigenvalues=e,
    )


def products(queries, train, rng, label="true"):
    """Gradient dot products with some noise: what scores look like, without a curvature."""
    R = queries.residual.copy()
    if label == "predicted":
        R += np.eye(10)[queries.label] - np.eye(10)[queries.prediction]
    clean = (R @ train.residual.T) * (queries.features @ train.features.T + 1)
    return (clean + 0.3 * clean.std() * rng.standard_normal(clean.shape)).astype(np.float32) * 40


def make_scores(queries, train, rng, *, variant, on_train, negative=0):
    damping = 5e-4 if variant == "damped" else 0.0
    label = "predicted" if variant == "predicted" else "true"
    facts = spectrum(rng, damping, negative)
    meta = {
        "curvature": {"name": "LinearHead", "damping": damping, "rcond": None},
        "query_label": label,
        "parameters": ["net.fc.weight", "net.fc.bias"],
        "p": 330,
        "mean_gradient": 0.02,
        "warnings": ["The objective still has a slope of 0.20 mean gradient lengths."] if variant == "" else [],
    }
    own = None
    if on_train:
        own = Scores(products(train, train, rng, label), train, train, spectrum=facts, meta=meta, on_itself=True)
    return Scores(products(queries, train, rng, label), queries, train, spectrum=facts, meta=meta, on_train=own)


def digits_run(
    source="natural", k=0, seed=0, *, n=60, m=50, variants=("", "damped", "predicted"), on_train=True, negative=0
):
    digits = load_digits()
    pixels, labels = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    rng = np.random.default_rng([seed, k, len(source)])
    noisy = 1.0 if source == "robust" else 0.4
    weights = rng.standard_normal((64, 32)) * noisy + rng.standard_normal((64, 32)) * (1.2 - noisy)
    rows = np.sort(rng.choice(1000, n, replace=False))
    rows[:10] = [int(np.flatnonzero(labels == c)[seed % 3]) for c in range(10)]
    rows = np.unique(rows)
    tests = np.arange(1000, 1000 + m)
    hidden = np.maximum(pixels[rows].reshape(len(rows), -1) @ weights, 0)
    head = np.linalg.lstsq(hidden.T @ hidden + np.eye(32), hidden.T @ (np.eye(10)[labels[rows]] - 0.1), rcond=None)[0]
    train = examples(pixels[rows], labels[rows], rows, weights, head, 6.0)
    queries = examples(pixels[tests], labels[tests], tests, weights, head, 6.0)
    chosen = np.unique(queries.label, return_index=True)[1]
    return RunView(
        name=f"{source}-k{k}-s{seed}",
        source=source,
        k=k,
        seed=seed,
        n=len(rows) if n < 60 else n,
        info={
            "data": {"name": "digits", "class_names": CLASSES},
            "source": {"name": source, "metadata": {"architecture": "small_resnet"}},
            "weight_decay": 5e-4,
            "accuracy": {
                "train": float(np.mean(train.prediction == train.label)),
                "test": float(np.mean(queries.prediction == queries.label)),
            },
        },
        scores={v: make_scores(queries, train, rng, variant=v, on_train=on_train, negative=negative) for v in variants},
        class_names=CLASSES,
        train_images=pixels[rows][:, None],
        query_images=pixels[tests][:, None],
        saliency_rows=chosen,
        saliency=(rng.standard_normal((len(chosen), 1, 28, 28)) * 0.02).astype(np.float32),
    )


def digits_runs(sources=("natural", "robust"), ks=(0,), seeds=3, **options):
    return [digits_run(source, k, seed, **options) for k in ks for seed in range(seeds) for source in sources]


@pytest.fixture(scope="session")
def build():
    """digits_run, as a fixture: test modules do not import one another."""
    return digits_run


@pytest.fixture(scope="session")
def build_all():
    return digits_runs


@pytest.fixture(scope="session")
def comparison():
    """Two sources, one k, three seeds, at a size that draws in no time."""
    return digits_runs(n=60, m=50)
