"""Weights in the layout of the robustness library, and what has to become of them."""

import torch
from torch import nn

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def robustness_layout(state, *, prefix="module.model.", counters=True, attacker=True):
    kept = {k: v for k, v in state.items() if counters or not k.endswith("num_batches_tracked")}
    normaliser = {"new_mean": torch.tensor(MEAN).view(3, 1, 1), "new_std": torch.tensor(STD).view(3, 1, 1)}
    layout = {f"module.normalizer.{k}": v for k, v in normaliser.items()}
    layout |= {f"{prefix}{k}": v for k, v in kept.items()}
    if attacker:
        layout |= {f"module.attacker.normalize.{k}": v for k, v in normaliser.items()}
        layout |= {f"module.attacker.model.{k}": v + 1 if v.is_floating_point() else v for k, v in kept.items()}
    return layout


def assert_holds(loaded, state, mean=MEAN, std=STD):
    own = loaded.model.net.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(own[key], value), key
    torch.testing.assert_close(loaded.model.normalizer.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(loaded.model.normalizer.std.flatten(), torch.tensor(std))
    assert not loaded.model.training


def lived(model, seed=0):
    """Batch-norm statistics and scales other than those of birth."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def logits(net, x, mean=MEAN, std=STD):
    """What the project's own network answers to normalised pixels."""
    shape = (3, 1, 1)
    with torch.no_grad():
        return net((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))


def assert_answers(loaded, x, expected):
    with torch.no_grad():
        found = loaded.model(x)
    assert expected.std() > 1e-3
    # float32, some ten layers deep; and pooling by windows adds in another order than pooling to one pixel
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
