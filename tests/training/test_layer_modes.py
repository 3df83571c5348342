"""Layers that compute their activations again: the same gradient, and what is kept is less."""

import copy

import pytest
import torch
from torch import nn

from rkd.errors import ConfigError
from rkd.training.layers import recompute_layers


def gradients(model, waveform_BT, lengths_B, labels_BL):
    """Return the gradients of all weights, and the bytes of activations that the forward pass keeps for them."""
    torch.manual_seed(0)  # of dropout
    kept = {}

    def keep(x):
        kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        streams = model.train()(waveform_BT, lengths_B, labels_BL)
    loss = sum(stream.project(stream.rows(stream.mask())).float().logsumexp(-1).sum() for stream in streams.values())
    loss.backward()
    return [p.grad for p in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("family", ["whisper", "ctc"])
def test_the_gradient_is_the_same_and_less_is_kept(family, make_whisper, make_ctc):
    plain = {"whisper": make_whisper, "ctc": make_ctc}[family](0, dropout=0.2)
    again = copy.deepcopy(plain)
    recompute_layers(again)
    averaged = copy.deepcopy(again)
    generator = torch.Generator().manual_seed(0)
    waveform_BT = 0.1 * torch.randn(3, 32000, generator=generator)
    lengths_B, labels_BL = torch.tensor([32000, 20000, 9000]), torch.tensor([[4, 5, 6], [5, 4, -100], [6, -100, -100]])
    wanted, all_kept = gradients(plain, waveform_BT, lengths_B, labels_BL)
    found, kept = gradients(again, waveform_BT, lengths_B, labels_BL)
    assert all(a is b or torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert kept < 0.7 * all_kept
    assert plain.state_dict().keys() == again.state_dict().keys()
    # A copy computes with weights of its own.
    found, _ = gradients(averaged, waveform_BT, lengths_B, labels_BL)
    assert all(a is b or torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match="Linear has no layers"):
        recompute_layers(nn.Linear(2, 2))
