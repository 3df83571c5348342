"""Layers that are computed again, or compiled: the same gradient, and what is kept is less."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from rkd.errors import ConfigError
from rkd.training.layers import compile_layers, recompute_layers


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


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("family", ["whisper", "ctc"])
def test_compiled_layers_compute_the_same_at_every_length(family, again, make_whisper, make_ctc):
    """With the part of torch.compile that decides what is compiled, and without the compiler."""
    plain = {"whisper": make_whisper, "ctc": make_ctc}[family](0)
    compiled, counter = copy.deepcopy(plain), CompileCounterWithBackend("aot_eager")
    if again:
        recompute_layers(compiled)
    compile_layers(compiled, counter)
    for n in (32000, 26000, 31000, 20000):
        waveform_BT = 0.1 * torch.randn(3, n, generator=torch.Generator().manual_seed(n))
        lengths_B, labels_BL = torch.tensor([n, 15000, 9000]), torch.tensor([[4, 5, 6], [5, 4, -100], [6, -100, -100]])
        wanted, _ = gradients(plain, waveform_BT, lengths_B, labels_BL)
        found, _ = gradients(compiled, waveform_BT, lengths_B, labels_BL)
        for a, b in zip(wanted, found, strict=True):
            assert a is b or torch.allclose(a, b, atol=1e-4 * max(1.0, float(a.abs().max())))
    frames = counter.frame_count
    gradients(compiled, 0.1 * torch.randn(3, 23000), torch.tensor([23000, 15000, 9000]), labels_BL)
    assert 0 < frames == counter.frame_count  # no further length is compiled for
    told = [model.eval().transcribe(waveform_BT, lengths_B) for model in (plain, compiled)]
    assert told[0] == told[1] and plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.parametrize("change", [recompute_layers, compile_layers])
def test_a_model_without_layers_is_refused(change):
    with pytest.raises(ConfigError, match="the model has no layers"):
        change(nn.Linear(2, 2))
