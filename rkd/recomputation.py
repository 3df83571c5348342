"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016)."""

from __future__ import annotations

import re
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from rkd.errors import ConfigError

LAYER = re.compile(r"(^|\.)(encoder|decoder)\.layers\.\d+$")


def recompute_layers(model: nn.Module) -> None:
    """Let each layer of a model's encoder and decoder keep its input alone; the gradient is the same to the last bit.

    Raises:
        ConfigError: the model has no such layers.
    """
    layers = [module for name, module in model.named_modules() if LAYER.search(name)]
    if not layers:
        raise ConfigError(
            f"trainer.recompute=true: {type(model).__name__} has no layers to compute again; leave it false, and lower "
            "trainer.batch_seconds with trainer.accumulate=2 instead"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
