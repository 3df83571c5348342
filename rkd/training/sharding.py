"""A training whose weights, gradients and optimiser state are divided over the ranks (FSDP2; Zhao et al. 2023).

What is outside such a training, its checkpoints included, holds whole tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rkd.errors import ConfigError
from rkd.training.layers import layers_of

M = TypeVar("M", bound=nn.Module)


def sharded(module: M, device: torch.device, ranks: int) -> M:
    """Return a copy of a module of which each rank holds a part; a layer is whole only while it computes.

    Raises:
        ConfigError: the module has no layers, or leaves out some at random: the ranks would wait for each other.
    """
    for part in module.modules():
        for key in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
            if share := getattr(getattr(part, "config", None), key, 0):
                raise ConfigError(f"trainer.shard=true: the model leaves out layers at random ({key}={share:g} in its "
                                  "configuration), and all ranks need the same; leave it false")  # fmt: skip
    copied = copy.deepcopy(module)
    layers = layers_of(copied, "trainer.shard=true", "each rank then holds all of it")
    mesh = init_device_mesh(device.type, (ranks,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Give each rank the whole module, to use without the others; not for training. One that is not sharded is."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not module, recurse=False)  # the outermost is needed right away
            part.reshard()


def whole(state: Any, keep: bool) -> Any:
    """Return a state with whole tensors on the CPU in place of divided ones; all ranks have to take part.

    Args:
        keep: whether this rank needs it; None stands for the tensors elsewhere.
    """
    if isinstance(state, DTensor):
        tensor = state.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(state, dict):
        return {key: whole(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep) for value in state]
    return state


def divided(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimiser, in which tensors are whole, with each divided as its weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(weight: Tensor, value: Tensor) -> Tensor:
        if isinstance(weight, DTensor) and value.shape == weight.shape:
            return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
        return value

    return {
        **state,
        "state": {i: {name: part(weights[i], v) for name, v in values.items()} for i, values in state["state"].items()},
    }
