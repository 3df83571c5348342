"""The CTC family: a clip alone and in a batch, its decoding against enumeration, folders, layers copied."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, padded

from rkd.errors import CheckpointError, ConfigError
from rkd.models import load_model, save_model
from rkd.models.base import count_parameters, evenly_spaced
from rkd.models.ctc import CTC

WINDOW = 2 * 16000
WORDS = ("one", "two", "three", "four")
NO_LABELS = torch.zeros(1, 0, dtype=torch.long)


def talkative(model):
    """Make a random model write many different words."""
    with torch.no_grad():
        model.head.weight *= 20
        model.head.bias[len(WORDS) :] = -100.0  # words alone: with a random encoder the blank would take every frame
    return model


def test_talkative_models_talk(make_ctc):
    """What the tests of transcripts rest on: words that depend on the clip."""
    texts = {talkative(make_ctc(seed)).transcribe(*padded([clip(WINDOW, seed)]))[0] for seed in range(8)}
    assert len(texts) >= 6 and all(texts)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(400, WINDOW), min_size=2, max_size=4), st.integers(0, 100))
def test_streams_batched_equal_alone(make_ctc, lengths, seed):
    model = make_ctc(seed)
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(*padded(clips, 300), NO_LABELS)
        assert set(together) == {"ctc_logits", "hidden.encoder.0", "hidden.encoder.1", "hidden.encoder.2"}
        for i, x_T in enumerate(clips):
            for name, stream in model(*padded([x_T]), NO_LABELS).items():
                n = int(stream.lengths_B[0])
                assert n == together[name].lengths_B[i] == -(-len(x_T) // 640) and stream.stride == 640
                assert torch.allclose(together[name].values_BND[i, :n], stream.values_BND[0, :n], atol=1e-4), name


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(400, WINDOW), min_size=2, max_size=4), st.integers(0, 100))
@pytest.mark.parametrize("beams", [1, 4])
def test_transcripts_batched_equal_alone(make_ctc, beams, lengths, seed):
    model = talkative(make_ctc(seed))
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    together = model.transcribe(*padded(clips, 300), beams)
    assert together == [model.transcribe(*padded([x_T]), beams)[0] for x_T in clips]


def test_saved_and_loaded(make_ctc, tmp_path):
    model = talkative(make_ctc(3))
    save_model(model, "ctc", tmp_path / "m")
    loaded = load_model(tmp_path / "m", {"ctc": CTC}).eval()
    x = padded([clip(9000), clip(4000)])
    with torch.no_grad():
        a, b = model(*x, NO_LABELS), loaded(*x, NO_LABELS)
    assert all(torch.equal(a[k].values_BND, b[k].values_BND) for k in a)
    assert loaded.transcribe(*x) == model.transcribe(*x)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "m", {"ctc": CTC})


def test_layers_are_copied(make_ctc):
    teacher, student = make_ctc(1, encoder_layers=3), make_ctc(2, encoder_layers=2)
    student.start_from(teacher, None, None)

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

    assert same(student.encoder.layers[0], teacher.encoder.layers[0])
    assert same(student.encoder.layers[1], teacher.encoder.layers[2])
    assert same(student.head, teacher.head) and same(student.encoder.conv1, teacher.encoder.conv1)
    assert same(student.encoder.conv2, teacher.encoder.conv2)
    with pytest.raises(ConfigError, match=r"student\.d_model=32"):
        make_ctc(2, d_model=16).start_from(teacher, None, None)


@given(st.integers(1, 30), st.integers(1, 30))
def test_evenly_spaced_keeps_the_ends(n_from, n_to):
    n_to = min(n_from, n_to)
    chosen = evenly_spaced(n_from, n_to)
    assert len(chosen) == n_to and chosen[-1] == n_from - 1 and (n_to == 1 or chosen[0] == 0)
    steps = np.diff(chosen)
    assert n_to == 1 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_positions_are_whispers_sinusoids(make_ctc, make_whisper):
    """Fixed tables: half sines, half cosines, wave lengths from 2 pi to 10,000 x 2 pi (Whisper's model.py)."""
    angles = np.outer(np.arange(50), np.exp(-np.log(10000) / 15 * np.arange(16)))
    expected_ND = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    for encoder in (make_ctc().encoder, make_whisper().hf.model.encoder):
        assert np.abs(encoder.embed_positions.weight.numpy(force=True) - expected_ND).max() < 1e-5
        assert not encoder.embed_positions.weight.requires_grad


def test_shared_weights_are_counted_once(make_ctc, make_whisper):
    ctc = make_ctc()
    per_layer = (
        4 * 32 * 32 + 3 * 32 + 2 * 32 * 64 + 64 + 32 + 4 * 32
    )  # attention (no bias on k), feed-forward, two norms
    stem = 16 * 32 * 3 + 32 + 32 * 32 * 3 + 32 + 64
    tables = ctc.encoder.embed_positions.weight.numel()
    head = 32 * len(ctc.tokenizer) + len(ctc.tokenizer)
    assert count_parameters(ctc) - tables in (2 * per_layer + stem + head,)
    whisper = make_whisper()
    assert whisper.hf.proj_out.weight is whisper.hf.model.decoder.embed_tokens.weight
    assert count_parameters(whisper) == sum(p.numel() for p in {id(p): p for p in whisper.parameters()}.values())
