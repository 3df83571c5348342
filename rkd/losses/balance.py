"""Terms whose shares of the gradient are those of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

DECAY = 0.9  # of the running mean of the norms, at each measurement


class Balance(nn.Module):
    """Scales the weights of loss terms so that each term's share of the gradient is its weight's share.

    EnCodec's balancer (Défossez et al. 2022, section 3.4): the gradient of term i is scaled to ``w_i / sum(w) R / n_i``
    of itself, with n_i a running mean of its norm. There R is 1; here it is ``sum(w n)``, so that the whole keeps the
    size that the weights alone would give it, and a learning rate or a clipping its meaning. The norms are those of the
    gradients with respect to the student's weights, since terms about different streams have no output in common.

    The norms are a part of the state, so that an interrupted training goes on as it was.

    Args:
        terms: how many there are.
        every: steps between two measurements.
    """

    norms_K: Tensor
    mass: Tensor

    def __init__(self, terms: int, every: int):
        super().__init__()
        self.every = every
        # Both decay alike: their quotient is a mean from the first measurement on.
        self.register_buffer("norms_K", torch.zeros(terms))
        self.register_buffer("mass", torch.zeros(()))

    def due(self, step: int) -> bool:
        """Say whether the norms are to be measured at a step of a phase, counted from its first."""
        return step % self.every == 0

    def update(self, norms_K: Tensor, anew: bool = False) -> None:
        """Take in measured norms; ``anew`` where the weights that are trained are others than before."""
        if anew:
            self.norms_K.zero_()
            self.mass.zero_()
        if torch.isfinite(norms_K).all():  # in fp16 a gradient may overflow
            self.norms_K.lerp_(norms_K, 1 - DECAY)
            self.mass.lerp_(torch.ones_like(self.mass), 1 - DECAY)

    def scaled(self, weights_K: Tensor) -> Tensor:
        """Return the weights to train with. A term without a gradient keeps its own."""
        norms_K = self.norms_K / self.mass.clamp(min=torch.finfo(self.mass.dtype).tiny)
        felt_K = norms_K > 0
        mean = (weights_K * norms_K).sum() / (weights_K * felt_K).sum().clamp(min=torch.finfo(weights_K.dtype).tiny)
        return torch.where(felt_K, weights_K * mean / norms_K.clamp(min=torch.finfo(norms_K.dtype).tiny), weights_K)


def gradient_norms(
    means: Iterable[Mapping[str, Tensor]],
    parameters: Sequence[nn.Parameter],
    reduce: Callable[[Tensor], Tensor],
    scale: float = 1.0,
) -> Tensor:
    """Return the norm of each term's gradient, summed over accumulated batches and ranks; shape ``(K,)``.

    Args:
        means: of each accumulated batch, the terms' shares of their means.
        parameters: what the gradients are with respect to; of each term a copy is held.
        reduce: sums a tensor over the ranks.
        scale: of the terms, so that gradients do not vanish in fp16.
    """
    sums: list[list[Tensor]] = []
    for shares in means:
        for k, value in enumerate(shares.values()):
            if k == len(sums):
                sums.append([torch.zeros_like(p) for p in parameters])
            if not value.requires_grad:
                continue
            found = torch.autograd.grad(scale * value, parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(sums[k], found, strict=True):
                if gradient is not None:
                    total += gradient
    flat = (torch.cat([g.flatten() for g in gradients]) for gradients in sums)
    return torch.stack([torch.linalg.vector_norm(reduce(g_P)) for g_P in flat]) / scale
