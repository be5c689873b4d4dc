"""The head of a network: a linear layer, or a small network of hidden layers that ends in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from .. import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """Layers of a head; by default there is the linear one alone."""

    hidden: int = 0
    """Hidden layers before the last linear layer."""
    width: int = 0
    """Units of each hidden layer; 0: as many as features enter the head."""
    batch_norm: bool = False
    """Batch-norm before the rectifier of each hidden layer."""
    dropout: float = 0.0
    """Probability with which a hidden unit is dropped in training."""

    def __post_init__(self) -> None:
        if not (self.hidden >= 0 and self.width >= 0 and 0 <= self.dropout < 1):
            raise UsageError(
                f"The head has {self.hidden} hidden layers of {self.width} units with dropout {self.dropout}; "
                "give whole numbers of at least 0, and a dropout from 0 to below 1."
            )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values; empty for the linear layer alone."""
        return {} if self == HeadSpec() else asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadSpec:
        """The spec that `to_dict` wrote."""
        kinds = {"hidden": int, "width": int, "batch_norm": bool, "dropout": float}
        return cls(**{name: kinds[name](value) for name, value in dict(values).items()})


class MLPHead(nn.Sequential):
    """Hidden layers (linear, batch-norm where asked for, rectifier, dropout where asked for), then a linear layer."""

    def __init__(self, features: int, num_classes: int, spec: HeadSpec) -> None:
        layers: list[nn.Module] = []
        inner = features
        for _ in range(spec.hidden):
            layers.append(nn.Linear(inner, spec.width))
            layers += [nn.BatchNorm1d(spec.width)] if spec.batch_norm else []
            layers.append(nn.ReLU())
            layers += [nn.Dropout(spec.dropout)] if spec.dropout else []
            inner = spec.width
        super().__init__(*layers, nn.Linear(inner, num_classes))


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """The whole head: an `MLPHead` where there is one, otherwise the last linear layer in order of registration.

    Args:
        model: Any module.

    Returns:
        Its name within the model, empty when the model is the head itself, and the module.

    Raises:
        UsageError: There is no linear layer.
    """
    modules = list(model.named_modules())
    heads: list[tuple[str, nn.Module]] = [link for link in modules if isinstance(link[1], MLPHead)]
    heads = heads or [link for link in modules if isinstance(link[1], nn.Linear)]
    if not heads:
        raise UsageError(
            f"{type(model).__name__} has no linear layer to take as its head; name the parameters to analyse."
        )
    return heads[-1]


def renew_head(model: nn.Module, num_classes: int, spec: HeadSpec) -> HeadSpec:
    """Put a fresh head in the place of a network's own; its weights come from torch's global generator.

    Args:
        model: The network; changed in place.
        num_classes: Length of the logits.
        spec: Layers of the head.

    Returns:
        The spec with the width that was taken.
    """
    name, old = find_head(model)
    features = next(m.in_features for m in old.modules() if isinstance(m, nn.Linear))
    spec = replace(spec, width=spec.width or features) if spec.hidden else HeadSpec()
    parent, _, leaf = name.rpartition(".")
    head = MLPHead(features, num_classes, spec) if spec.hidden else nn.Linear(features, num_classes)
    setattr(model.get_submodule(parent), leaf, head)
    return spec
