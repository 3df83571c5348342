"""Attention maps of every family: Transformers' own, a clip alone and in a batch, made only on request."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, label_batch, padded
from pretrained import ctc_folder, whisper_folder

from rkd.models import load_model, save_model
from rkd.models.ctc import CTC
from rkd.models.hub_ctc import HubCTC
from rkd.models.hub_whisper import HubWhisper
from rkd.models.whisper import Whisper

FAMILIES = {"whisper": Whisper, "ctc": CTC, "hubwhisper": HubWhisper, "hubctc": HubCTC}
KINDS = ["whisper", "ctc", "trimmed", "original", "wav2vec2-base", "hubert-large", "wavlm-base"]
PARTS = {"whisper": ["encoder", "cross"], "trimmed": ["encoder", "cross"], "original": ["encoder", "cross"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("attention")
    return {"whisper": whisper_folder(root / "whisper"), **{k: ctc_folder(root / k, k) for k in KINDS[4:]}}


@pytest.fixture(scope="module")
def make(make_whisper, make_ctc, folders):
    """Make a model of a kind that gives its maps."""

    def make(kind, asked=True):
        if kind in ("whisper", "ctc"):
            model = {"whisper": make_whisper, "ctc": make_ctc}[kind](1)
        elif kind in ("trimmed", "original"):
            model = HubWhisper(folders["whisper"], window=kind).eval()
        else:
            model = HubCTC(folders[kind]).eval()
        for part in PARTS.get(kind, ["encoder"]) if asked else []:
            model.provide_attention(part)
        return model

    return make


CLIPS = [clip(16000), clip(7000, 1), clip(11001, 2)]
LABELS = [[0, 2, 1, 5], [3, 5], [5]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_are_weights_over_speech(make, kind):
    model = make(kind)
    with torch.no_grad():
        streams = model(*padded(CLIPS, 100), label_batch(LABELS))
    frames_B = streams["hidden.encoder.1"].lengths_B
    for part in PARTS.get(kind, ["encoder"]):
        depth = model.depth["encoder" if part == "encoder" else "decoder"]
        names = {f"attention.{part}.{i}" for i in range(1, depth + 1)}
        assert {name for name in streams if name.startswith(f"attention.{part}.")} == names
        for i in range(1, depth + 1):
            one = streams[f"attention.{part}.{i}"]
            assert one.stride == (model.stride if part == "encoder" else None)
            assert one.lengths_B.tolist() == (frames_B.tolist() if part == "encoder" else [4, 2, 1])
            for row, n, n_keys in zip(one.values_BND, one.lengths_B, frames_B, strict=True):
                assert (row[:n, :n_keys] >= 0).all() and (row[:, n_keys:] == 0).all()
                total = row[:n].sum(-1)
                if kind == "original":  # also looks at the silence up to 30 s
                    assert (total < 1).all() and (total > 0).all()
                else:
                    assert torch.allclose(total, torch.ones(int(n)), atol=1e-4)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(1600, 30000), min_size=2, max_size=3))
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "original"])
def test_maps_batched_equal_alone(make, kind, lengths):
    model = make(kind)
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    rows = [[i, 2, 5][: i + 1] for i in range(len(clips))]
    with torch.no_grad():
        together = model(*padded(clips, 300), label_batch(rows))
        for i, x_T in enumerate(clips):
            alone = model(*padded([x_T]), label_batch([rows[i]]))
            names = [name for name in alone if name.startswith("attention")]
            assert names
            for name in names:
                n, alone_QK = int(alone[name].lengths_B[0]), alone[name].values_BND[0]
                together_QK = together[name].values_BND[i, :, : alone_QK.shape[1]]
                assert torch.allclose(together_QK[:n], alone_QK[:n], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_asking_for_maps_changes_nothing_else(make, kind):
    plain, asked = make(kind, asked=False), make(kind)
    asked.load_state_dict(plain.state_dict())
    x = padded(CLIPS[:2])
    with torch.no_grad():
        before, after = (model(*x, label_batch(LABELS[:2])) for model in (plain, asked))
    assert not any(name.startswith("attention") for name in before) and before.keys() < after.keys()
    for name, one in before.items():
        valid = one.mask()
        scale = max(1.0, float(one.values_BND[valid].abs().max()))
        assert torch.allclose(after[name].values_BND[valid], one.values_BND[valid], atol=1e-4 * scale), name
    assert plain.transcribe(*x) == asked.transcribe(*x)


def test_the_maps_are_transformers_own(folders):
    """On a window that is all speech, against `output_attentions` of the plain model."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = HubWhisper(folders["whisper"], window="original").eval()
    for part in ("encoder", "cross"):
        model.provide_attention(part)
    plain = WhisperForConditionalGeneration.from_pretrained(folders["whisper"], attn_implementation="eager").eval()
    x_T, tokens = clip(480000), [1, 2, 3]
    mel = WhisperFeatureExtractor.from_pretrained(folders["whisper"])(
        x_T.numpy(), sampling_rate=16000, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        inputs = torch.tensor([model.prompt + tokens[:-1]])
        theirs = plain(input_features=mel, decoder_input_ids=inputs, output_attentions=True)
        ours = model(*padded([x_T]), label_batch([tokens]))
    for i, (own, cross) in enumerate(zip(theirs.encoder_attentions, theirs.cross_attentions, strict=True), start=1):
        assert torch.allclose(ours[f"attention.encoder.{i}"].values_BND, own.mean(1), atol=1e-4)
        expected = cross.mean(1)[:, len(model.prompt) - 1 :]
        assert torch.allclose(ours[f"attention.cross.{i}"].values_BND, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["wav2vec2-base", "wavlm-base", "whisper"])
def test_maps_in_training_are_whole_and_have_gradients(make, kind):
    """Neither dropout on attention weights nor dropped layers, of which wav2vec 2.0 has both."""
    model = make(kind).train()
    for seed in range(6):
        torch.manual_seed(seed)
        streams = model(*padded(CLIPS[:1]), label_batch(LABELS[:1]))
        maps = [streams[f"attention.encoder.{i}"].values_BND for i in range(1, model.depth["encoder"] + 1)]
        assert all(torch.allclose(x.sum(-1), torch.ones(x.shape[:2]), atol=1e-4) for x in maps)
    (maps[-1] ** 2).sum().backward()
    assert any(p.grad is not None and (p.grad != 0).any() for p in model.parameters())


@pytest.mark.parametrize("kind", ["whisper", "ctc", "trimmed", "wav2vec2-base"])
def test_a_saved_model_does_not_go_on_giving_maps(make, kind, tmp_path):
    model = make(kind)
    family = type(model).__name__.lower()
    save_model(model, family, tmp_path / "m")
    loaded = load_model(tmp_path / "m", FAMILIES).eval()
    with torch.no_grad():
        streams = loaded(*padded(CLIPS[:1]), label_batch(LABELS[:1]))
    assert not any(name.startswith("attention") for name in streams)
    hf = loaded.encoder if kind == "ctc" else loaded.hf
    assert hf.config._attn_implementation == "sdpa"
