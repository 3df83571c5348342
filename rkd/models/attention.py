"""Attention maps of Transformers' models: made only where a loss term asks for them.

Shapes: B batch, H heads, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rkd.masks import valid_mask
from rkd.models.base import Stream


class AttentionRecorder:
    """Keeps the maps of some attention layers, averaged over their heads, from one forward pass of a model.

    The fused attention that Transformers takes by default has no maps, so the model is switched to the eager one.
    Dropout on attention weights is switched off: what it leaves of a map is no distribution.

    Args:
        hf: the model of Transformers; its attention modules return the weights as their second value.
        layers: its attention modules, in their order.
    """

    def __init__(self, hf: Any, layers: Iterable[nn.Module]):
        if hf.config._attn_implementation != "eager":
            hf.set_attn_implementation("eager")
        self._maps: dict[int, Tensor] = {}
        for number, layer in enumerate(layers, start=1):
            layer.dropout = 0.0  # type: ignore[assignment]
            layer.register_forward_hook(partial(self._keep, number))  # a copy of the model has a recorder of its own

    def _keep(self, number: int, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        self._maps[number] = output[1].mean(1)

    def streams(
        self,
        name: str,
        n_keys_B: Tensor,
        n_queries_B: Tensor,
        stride: int | None,
        queries: Callable[[Tensor], Tensor] = lambda map_BQK: map_BQK,
    ) -> dict[str, Stream]:
        """Return the maps of the last pass as streams ``<name>.<layer>`` of values ``(B, Q, K)``, layers from 1.

        Args:
            name: such as ``attention.encoder``.
            n_keys_B: valid keys; the weights of the others are set to zero.
            n_queries_B: valid queries.
            stride: of the queries.
            queries: takes those of the streams out of a map; they are all taken unless said.
        """
        n = int(n_keys_B.max())
        valid_B1K = valid_mask(n_keys_B, n)[:, None]
        maps, self._maps = self._maps, {}
        return {
            f"{name}.{number}": Stream(torch.where(valid_B1K, queries(map_BQK)[..., :n], 0.0), n_queries_B, stride)
            for number, map_BQK in maps.items()
        }
