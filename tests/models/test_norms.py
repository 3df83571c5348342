"""The masked group norm: torch's own over each clip alone, and zero beyond it."""

import pytest
import torch
from torch import nn

from rkd.models.norms import MaskedGroupNorm


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_each_clip_is_normalised_alone(groups):
    torch.manual_seed(0)
    own, masked = nn.GroupNorm(groups, 6).double(), MaskedGroupNorm(groups, 6).double()
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    masked.load_state_dict(own.state_dict())
    x_BCF = 3 + torch.randn(3, 6, 10, dtype=torch.float64)
    masked.lengths_B = torch.tensor([10, 4, 1])
    out_BCF = masked(x_BCF)
    for row, n in enumerate(masked.lengths_B.tolist()):
        if n > 1 or groups < 6:  # torch refuses to normalise a single value
            assert torch.allclose(out_BCF[row, :, :n], own(x_BCF[row : row + 1, :, :n])[0], atol=1e-9)
        assert (out_BCF[row, :, n:] == 0).all()
