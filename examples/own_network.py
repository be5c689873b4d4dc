"""A network of your own: this script trains one on handwritten digits and writes what `upweight attribute` needs.

    python examples/own_network.py own
    upweight attribute --model examples.own_network:network --weights own/weights.safetensors \
        --train own/train.npz --queries own/queries.npz --weight-decay 1e-3 --out own/run
    upweight query own/run --query 17 --image own/query-17.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn


def network() -> nn.Module:
    """What --model names: a function without arguments that makes the network; its weights come from --weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, weight_decay: float) -> None:
    """Minimise the mean cross-entropy plus an L2 penalty."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=weight_decay)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main(out: Path) -> None:
    """Write weights.safetensors, train.npz and queries.npz."""
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    torch.manual_seed(0)
    model = network()
    train(model, torch.from_numpy(x[:400]), torch.from_numpy(y[:400]), weight_decay=1e-3)
    with torch.no_grad():
        accuracy = (model(torch.from_numpy(x[1000:])).argmax(1).numpy() == y[1000:]).mean()
    save_file(model.state_dict(), out / "weights.safetensors")
    np.savez(out / "train.npz", x=x[:400], y=y[:400])
    np.savez(out / "queries.npz", x=x[1000:], y=y[1000:])
    print(f"{out}: test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["own"]))
