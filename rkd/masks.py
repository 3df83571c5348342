"""Which steps of padded clips are theirs. Shapes: B batch, N steps."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_mask(lengths_B: Tensor, n: int) -> Tensor:
    """Return True at the first ``lengths_B`` of ``n`` steps; shape ``(B, N)``."""
    return torch.arange(n, device=lengths_B.device) < lengths_B[:, None]
