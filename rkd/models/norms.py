"""Normalisation that looks at each clip's own frames alone.

Shapes: B batch, C channels, F frames, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rkd.masks import valid_mask


class MaskedGroupNorm(nn.GroupNorm):
    """A group norm (Wu & He 2018) over each clip's valid frames, zero beyond them.

    torch's own counts the padding, so that a clip's output depends on what it is batched with. With one group this is
    the global layer norm of Conv-TasNet, with a group a channel the norm of wav2vec 2.0's first convolution.
    """

    lengths_B: Tensor | None = None  # valid frames, set before each call

    def forward(self, x_BCF: Tensor) -> Tensor:
        """Normalise ``(B, C, F)``."""
        assert self.lengths_B is not None
        # In float32, as torch's own group norm under autocast.
        x = (x_BCF.float() if x_BCF.dtype in (torch.float16, torch.bfloat16) else x_BCF).unflatten(
            1, (self.num_groups, -1)
        )
        valid_B11F = valid_mask(self.lengths_B, x_BCF.shape[2])[:, None, None].to(x.dtype)
        n_B111 = (self.lengths_B.clamp(min=1) * x.shape[2])[:, None, None, None]
        centred = (x - (x * valid_B11F).sum((2, 3), keepdim=True) / n_B111) * valid_B11F
        variance = centred.square().sum((2, 3), keepdim=True) / n_B111
        normal_BCF = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return torch.addcmul(self.bias[:, None] * valid_B11F[:, 0], normal_BCF, self.weight[:, None])
