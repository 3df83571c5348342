"""Conv-TasNet (Luo & Mesgarani 2019): a mask on learned filters' outputs, in torchaudio's implementation.

Shapes: B batch, T samples, N filters, F frames, L samples of a filter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rkd.errors import ConfigError
from rkd.features import silenced
from rkd.models.denoisers.base import OPEN_MASK_LOGIT, Denoiser, open_mask
from rkd.models.norms import MaskedGroupNorm


class ConvTasNet(Denoiser):
    """Conv-TasNet with one source.

    Its global layer norms see each clip alone. The encoder starts orthogonal and the decoder as half its transpose:
    every sample lies in two frames, so that with a mask of 1 the output is the input, as long as there are as many
    filters as each has samples. The mask starts near 1.

    Args are torchaudio's, with smaller defaults: frames of 4 ms instead of 2, which takes half the time, and a tenth of
    the weights.

    Args:
        enc_kernel_size: samples of a filter; half of it is the step. Even.
        enc_num_feats: filters.
        msk_num_feats, msk_num_hidden_feats: channels between and within blocks. Their convolutions are 3 wide:
            torchaudio pads for that width alone.
        msk_num_layers, msk_num_stacks: blocks of a stack, with dilations 1, 2, 4, ..., and stacks.
        msk_activate: of the mask: ``sigmoid`` as in the paper, or ``relu``.

    Raises:
        ConfigError: an odd kernel.
    """

    family = "convtasnet"
    net: Any

    def __init__(
        self,
        enc_kernel_size: int = 64,
        enc_num_feats: int = 128,
        msk_num_feats: int = 64,
        msk_num_hidden_feats: int = 128,
        msk_num_layers: int = 6,
        msk_num_stacks: int = 2,
        msk_activate: str = "sigmoid",
    ):
        super().__init__()
        from torchaudio.models import ConvTasNet as Network

        if enc_kernel_size % 2:
            raise ConfigError(f"denoiser.enc_kernel_size={enc_kernel_size}: half of it is the step, so it must be even")
        self.shape = {
            "enc_kernel_size": enc_kernel_size, "enc_num_feats": enc_num_feats,
            "msk_num_feats": msk_num_feats, "msk_num_hidden_feats": msk_num_hidden_feats,
            "msk_num_layers": msk_num_layers, "msk_num_stacks": msk_num_stacks, "msk_activate": msk_activate,
        }  # fmt: skip
        self.step = enc_kernel_size // 2
        self.net = mask_norms(Network(num_sources=1, **self.shape))
        self.norms = [module for module in self.net.modules() if isinstance(module, MaskedGroupNorm)]
        nn.init.orthogonal_(self.net.encoder.weight)
        self.net.decoder.weight.data = self.net.encoder.weight.data / 2
        open_mask(self.net.mask_generator.output_conv, OPEN_MASK_LOGIT if msk_activate == "sigmoid" else 1.0)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        n_samples = waveform_BT.shape[1]
        with torch.autocast(waveform_BT.device.type, enabled=False):  # bfloat16 does not hold a waveform
            wave_BT = silenced(waveform_BT, lengths_B, n_samples + -n_samples % self.step)
            coded_BNF = self.net.encoder(wave_BT[:, None])
        for norm in self.norms:
            norm.lengths_B = (lengths_B + self.step - 1) // self.step + 1
        mask_BNF = self.net.mask_generator(coded_BNF)[:, 0]
        with torch.autocast(waveform_BT.device.type, enabled=False):
            denoised_BT = self.net.decoder(coded_BNF * mask_BNF.float())[:, 0]
        return silenced(denoised_BT, lengths_B, n_samples)


def mask_norms(module: nn.Module) -> nn.Module:
    """Replace every group norm by one that sees each clip alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, MaskedGroupNorm(child.num_groups, child.num_channels, child.eps))
        else:
            mask_norms(child)
    return module
