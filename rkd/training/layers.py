"""How the layers of a model's encoder and decoder are computed: again instead of kept, or compiled."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from rkd.errors import ConfigError
from rkd.training.tuning import LAYER


def recompute_layers(model: nn.Module) -> None:
    """Let each layer keep its input alone (Chen et al. 2016); the gradient is the same to the last bit.

    Raises:
        ConfigError: the model has no layers.
    """
    for layer in layers_of(model, "trainer.recompute=true", "lower trainer.batch_seconds with trainer.accumulate=2"):
        layer.forward = MethodType(_again, layer)  # type: ignore[method-assign]


def _again(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(type(layer).forward, layer, *args, use_reentrant=False, **kwargs)


def compile_layers(model: nn.Module, backend: Any = "inductor") -> None:
    """Compile each layer, for any length: all layers of a kind and all batches share what is compiled once.

    A copy of the model is not compiled.

    Raises:
        ConfigError: the model has no layers.
    """
    for layer in layers_of(model, "trainer.compile=true", "no option compiles it"):
        layer.compile(dynamic=True, backend=backend)


def layers_of(model: nn.Module, asked: str, instead: str) -> list[nn.Module]:
    """Return the layers of encoder and decoder; without any the error says what was asked for, and what to do."""
    names = dict.fromkeys(n[: m.end() - 1] for n, _ in model.named_parameters() if (m := LAYER.search(n)))
    if not names:
        raise ConfigError(f"{asked}: the model has no layers of an encoder or decoder; leave it false: {instead}")
    return [model.get_submodule(name) for name in names]
