"""One notion of "the last k blocks" for every network: a chain of modules, cut in two.

A chain lists the modules of a network in the order of its forward pass, so that their composition is that pass. The
last k residual blocks are the chain from the k-th last block on; 0 is the head alone.

CARTL counts the head as 1 and, in a wide residual network, the batch-norm and rectifier after the last block as 2: its k
is ours + 2 there (34-10 has 17 of them, 15 here) and in a DenseNet, and ours + 1 in other networks.
`split(..., counting="cartl")` takes its k; 1 is our 0, and 2 in a wide residual network, the last batch-norm and the head, has no
other name here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from torch import nn

from .. import UsageError
from .chains import Chain, chain, is_block
from .device import seeded
from .heads import HeadSpec, find_head, renew_head
from .zoo import Classifier


class Split(NamedTuple):
    """A network cut in two; both parts share its modules."""

    frozen: nn.Sequential
    trained: nn.Sequential
    parameters: tuple[str, ...]
    """Names, within the whole model, of the parameters of the trained part."""
    body: int
    """Modules of the trained part that come before the head."""

    @property
    def features(self) -> nn.Sequential:
        """The trained part without the head: what gives the penultimate features."""
        return self.trained[: self.body]

    @property
    def head(self) -> nn.Sequential:
        """The rest of the trained part."""
        return self.trained[self.body :]

    @property
    def blocks(self) -> int:
        """Residual blocks in the trained part, however they were counted when it was asked for."""
        return sum(is_block(module) for module in self.trained)


def block_names(model: nn.Module) -> list[str]:
    """Names of the residual blocks, first to last.

    A last convolution or batch-norm that follows the last block is trained with it. A DenseNet has its dense blocks here, and a
    VGG has none.

    Args:
        model: A network that `chain` knows, or one with an attribute `upweight_blocks` that lists module names.

    Returns:
        Names within the model.

    Raises:
        UsageError: Neither holds, or a name of `upweight_blocks` is no module.
    """
    own = getattr(model, "upweight_blocks", None)
    if own is None:
        return [name for name, module in chain(model) if is_block(module)]
    modules = dict(model.named_modules())
    for name in own:
        if name not in modules:
            raise UsageError(f"upweight_blocks of {type(model).__name__} names {name!r}, which is no module of it.")
    return list(own)


def head_name(model: nn.Module) -> str:
    """Name of the last linear layer of the head, in order of registration: the one that gives the logits.

    Args:
        model: Any module with a linear layer.

    Returns:
        Its name within the model; empty when the model is that layer itself.
    """
    name, head = find_head(model)
    last = [inner for inner, module in head.named_modules() if isinstance(module, nn.Linear)][-1]
    return ".".join(part for part in (name, last) if part)


def with_new_head(model: Classifier, num_classes: int, seed: int, head: HeadSpec | None = None) -> Classifier:
    """A copy of a network whose head is a fresh one for other classes, as torch initialises it by default.

    Args:
        model: The source; left as it is.
        num_classes: Classes of the target.
        seed: Decides the head.
        head: Its layers; a linear one when not given.

    Returns:
        The copy, on the CPU.
    """
    model = copy.deepcopy(model).cpu()
    with seeded("head", seed):
        spec = renew_head(model, num_classes, head or HeadSpec())
    model.spec = replace(model.spec, num_classes=num_classes, head=spec)
    return model


def split(model: nn.Module, k: int | Literal["all"], *, counting: Literal["residual", "cartl"] = "residual") -> Split:
    """Cut a network before its k-th last block; with k = 0, before its head.

    Args:
        model: A network that `chain` knows.
        k: Blocks in the trained part, besides the head; all: every block and the stem before them.
        counting: residual counts residual blocks; cartl counts as CARTL does, the head being the first.

    Returns:
        Both parts as modules, and the names of the trained parameters.

    Raises:
        UsageError: k is negative or beyond the blocks.
    """
    links = chain(model)
    if k == "all":
        cut = _first_trainable(links)
    else:
        cut = _cut(model, links, k) if counting == "residual" else _cartl_cut(model, links, k)
    frozen, trained = (nn.Sequential(*(m for _, m in part)) for part in (links[:cut], links[cut:]))
    return Split(frozen, trained, _names_of(model, [m for _, m in links[cut:]]), _cut(model, links, 0) - cut)


def _first_trainable(links: Chain) -> int:
    return next(i for i, (_, module) in enumerate(links) if any(True for _ in module.parameters()))


def _check_k(k: int, blocks: int) -> None:
    if not 0 <= k <= blocks:
        raise UsageError(
            f"k is {k}, but this network has {blocks} residual blocks; choose 0 (the head alone) to {blocks}."
        )


def _cut(model: nn.Module, links: Chain, k: int) -> int:
    blocks = [position for position, (_, module) in enumerate(links) if is_block(module)]
    _check_k(k, len(blocks))
    if k:
        return blocks[-k]
    # the head begins after the flattening, which has no parameters and always precedes it
    flat = [i for i, (_, m) in enumerate(links) if any(isinstance(inner, nn.Flatten) for inner in m.modules())]
    return flat[-1] + 1


def _cartl_cut(model: nn.Module, links: Chain, k: int) -> int:
    units = [position for position, (_, module) in enumerate(links) if is_block(module)]
    head = _cut(model, links, 0)
    if units and isinstance(links[units[-1] + 1][1], nn.BatchNorm2d):
        units.append(units[-1] + 1)
    units.append(head)
    if not 1 <= k <= len(units):
        raise UsageError(
            f"k is {k}, but this network has {len(units)} blocks as CARTL counts them; choose 1 (the head alone) to {len(units)}."
        )
    return units[-k]


def _names_of(model: nn.Module, modules: Sequence[nn.Module]) -> tuple[str, ...]:
    """Names within the model of the parameters of some of its modules, in the model's order, tied ones once."""
    wanted = {id(parameter) for module in modules for parameter in module.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in wanted)


def resolve_parameters(model: nn.Module, spec: str | Sequence[str]) -> tuple[str, ...]:
    """The parameters that words like "head" or "blocks:3" mean in this model.

    Args:
        model: Any module; "blocks:k" needs one that `block_names` knows.
        spec: "head", "blocks:k" (the last k blocks and the head), "all", or names of parameters or modules.

    Returns:
        Names in `model.named_parameters()`, in its order, each once.

    Raises:
        UsageError: A name or word is unknown, k is beyond the blocks, or nothing is left to analyse.
    """
    if spec == "all":
        names = tuple(name for name, _ in model.named_parameters())
    elif spec == "head":
        names = _names_of(model, [model.get_submodule(head_name(model))])
    elif isinstance(spec, str) and spec.startswith("blocks:"):
        names = _block_parameters(model, spec)
    else:
        names = _named(model, [spec] if isinstance(spec, str) else list(spec))
    if not names:
        raise UsageError(f"parameters={spec!r} holds no parameter of {type(model).__name__}; choose others.")
    return names


def _block_parameters(model: nn.Module, spec: str) -> tuple[str, ...]:
    word = spec.removeprefix("blocks:")
    if not word.isdecimal():
        raise UsageError(f"parameters={spec!r} should end in a number of blocks, as in 'blocks:3'.")
    k = int(word)
    if getattr(model, "upweight_blocks", None) is None:
        return split(model, k).parameters
    blocks = block_names(model)
    _check_k(k, len(blocks))
    return _names_of(model, [model.get_submodule(name) for name in [*blocks[len(blocks) - k :], head_name(model)]])


def _named(model: nn.Module, names: list[str]) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted: set[int] = set()
    for name in names:
        if name in parameters:
            wanted.add(id(parameters[name]))
        elif name in modules:
            wanted.update(id(parameter) for parameter in modules[name].parameters())
        else:
            raise UsageError(
                f"{type(model).__name__} has no parameter or module {name!r}; "
                f"its top-level modules are {', '.join(dict(model.named_children())) or 'none'}."
            )
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in wanted)
