"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016)."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from rkd.errors import ConfigError
from rkd.training.tuning import LAYER


def recompute_layers(model: nn.Module) -> None:
    """Let each layer of a model's encoder and decoder keep its input alone; the gradient is the same to the last bit.

    Raises:
        ConfigError: the model has no such layers.
    """
    names = dict.fromkeys(n[: m.end() - 1] for n, _ in model.named_parameters() if (m := LAYER.search(n)))
    layers = [model.get_submodule(name) for name in names]
    if not layers:
        raise ConfigError(
            f"trainer.recompute=true: {type(model).__name__} has no layers to compute again; leave it false, and lower "
            "trainer.batch_seconds with trainer.accumulate=2 instead"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
