"""The Whisper family: a clip alone and in a batch, Transformers' own model, folders on disk, layers copied."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_clips import clip, label_batch, padded

from rkd.config.teaching import of_frames
from rkd.errors import CheckpointError, ConfigError, DataError
from rkd.models import load_model, save_model
from rkd.models.whisper import Whisper

FAMILIES = {"whisper": Whisper}
WINDOW = 2 * 16000
LENGTHS = st.lists(st.integers(400, WINDOW), min_size=2, max_size=4)


def loud(model, factor=3.0):
    """Make random weights larger, so that outputs depend on their input visibly."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and p.requires_grad:
                p *= factor
    return model


@settings(max_examples=12, deadline=None)
@given(LENGTHS, st.integers(0, 100))
def test_streams_batched_equal_alone(make_whisper, lengths, seed):
    model = loud(make_whisper(seed))
    rows = [list(np.random.default_rng(seed + i).integers(0, 4, 1 + (seed + i) % 5)) for i in range(len(lengths))]
    clips = [clip(n, i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        together = model(*padded(clips, 300), label_batch(rows))
        for i, (x_T, tokens) in enumerate(zip(clips, rows, strict=True)):
            alone = model(*padded([x_T]), label_batch([tokens]))
            assert alone.keys() == together.keys()
            for name, stream in alone.items():
                n = int(stream.lengths_B[0])
                assert together[name].lengths_B[i] == n and together[name].stride == stream.stride
                assert torch.allclose(together[name].values_BND[i, :n], stream.values_BND[0, :n], atol=1e-4), name


def test_frames_need_no_labels(make_whisper, make_batches):
    """A teacher of which only frames are compared may number its tokens otherwise, and have fewer."""
    model, batch = loud(make_whisper()), make_batches().collate(0, np.arange(3))
    with torch.no_grad():
        told = batch.through(model, batch.clean_BT)
        batch.labels_BL[:, 0] = 10**6
        untold = batch.without_labels().through(model, batch.clean_BT)
    for name in filter(of_frames, told):
        assert torch.equal(untold[name].values_BND, told[name].values_BND), name
        assert torch.equal(untold[name].lengths_B, told[name].lengths_B)


def test_the_streams_have_the_lengths_they_say(make_whisper):
    model = make_whisper(encoder_layers=3, decoder_layers=2)
    with torch.no_grad():
        streams = model(*padded([clip(16000), clip(639)]), label_batch([[0, 1, 2, 5], [3, 5]]))
    assert set(streams) == {
        "logits", "ctc_logits", *(f"hidden.encoder.{i}" for i in range(4)), *(f"hidden.decoder.{i}" for i in range(3)),
    }  # fmt: skip
    for name, stream in streams.items():
        if name == "logits" or "decoder" in name:
            assert stream.lengths_B.tolist() == [4, 2] and stream.stride is None and stream.values_BND.shape[1] == 4
        else:
            assert stream.lengths_B.tolist() == [25, 1] and stream.stride == 640 and stream.values_BND.shape[1] == 25


def test_a_label_does_not_see_the_labels_after_it(make_whisper):
    model = loud(make_whisper())
    x = padded([clip(8000)])
    with torch.no_grad():
        a = model(*x, label_batch([[0, 1, 2, 3]]))["logits"].values_BND[0]
        b = model(*x, label_batch([[0, 1, 3, 3]]))["logits"].values_BND[0]
    assert torch.allclose(a[:3], b[:3], atol=1e-5) and (a[3] - b[3]).abs().max() > 1e-3


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(8)), n=st.integers(2, 8), extra=st.integers(0, 9000))
@pytest.mark.parametrize("beams", [1, 4])
def test_transcripts_batched_equal_alone(taught, beams, order, n, extra):
    model, batch = taught.model, taught.batch
    clips = [batch.clean_BT[i, : batch.lengths_B[i]] for i in order[:n]]
    extra = min(extra, WINDOW - max(map(len, clips)))
    together = model.transcribe(*padded(clips, extra), beams)
    assert together == [model.transcribe(*padded([x_T]), beams)[0] for x_T in clips]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_decoder_that_loops_is_stopped_alike_alone_and_in_a_batch(make_whisper, beams):
    for seed in range(4):
        model = loud(make_whisper(seed, decoder_layers=2), 1.5)
        clips = [clip(n, seed + i) for i, n in enumerate((2000, 16000, 31000))]
        together = model.transcribe(*padded(clips), beams)
        assert together == [model.transcribe(*padded([x_T]), beams)[0] for x_T in clips]


@pytest.mark.parametrize("beams", [1, 4])
def test_it_learns(taught, beams):
    assert taught.model.transcribe(taught.batch.clean_BT, taught.batch.lengths_B, beams) == taught.batch.texts


# --- Transformers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(taught.model, "whisper", folder)
    return folder


def test_equal_to_plain_transformers_on_a_full_window(taught, folder):
    """A clip of exactly the window has nothing to mask, so the plain model must agree."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    plain = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    x_T = clip(WINDOW, 5)
    tokens = [0, 2, 1, taught.model.tokenizer.eos_token_id]
    mel = extractor(x_T.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        inputs = torch.tensor([taught.model.prompt + tokens[:-1]])
        expected = plain(input_features=mel, decoder_input_ids=inputs).logits[0, len(taught.model.prompt) - 1 :]
        logits = taught.model(*padded([x_T]), label_batch([tokens]))["logits"].values_BND[0]
    assert torch.allclose(logits, expected, atol=1e-3 * float(expected.abs().max()))


def test_without_masks_the_padding_would_be_heard(taught, folder):
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    plain = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    x_T = clip(8000, 5)
    mel = WhisperFeatureExtractor.from_pretrained(folder)(
        x_T.numpy(), sampling_rate=16000, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        theirs_ND = plain.model.encoder(mel).last_hidden_state[0]
        padded_ND = taught.model.encode(torch.nn.functional.pad(x_T, (0, WINDOW - 8000))[None], torch.tensor([8000]))
        alone_ND = taught.model.encode(x_T[None], torch.tensor([8000])).last_hidden_state[0]
    n = len(alone_ND)
    assert torch.allclose(padded_ND.last_hidden_state[0, :n], alone_ND, atol=1e-4)
    assert (theirs_ND[:n] - alone_ND).abs().max() > 0.05


def test_pipeline_runs_on_a_saved_model(taught, folder):
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    x_T = torch.nn.functional.pad(taught.batch.clean_BT[0], (0, WINDOW))[:WINDOW]
    expected = taught.model.transcribe(x_T[None], torch.tensor([WINDOW]))[0]
    text = recognise({"raw": x_T.numpy(), "sampling_rate": 16000})["text"].strip()
    assert text and text == expected


# --- folders ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(taught, folder):
    model = load_model(folder, FAMILIES).eval()
    assert model.shape == taught.model.shape and model.window_seconds == 2
    ours, theirs = taught.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    with torch.no_grad():
        x = padded([clip(7000), clip(5000)])
        a, b = taught.model(*x, label_batch([[0, 1], [2]])), model(*x, label_batch([[0, 1], [2]]))
    assert all(torch.equal(a[k].values_BND, b[k].values_BND) for k in a)
    run = folder.parent / "run"
    shutil.copytree(folder, run / "model", dirs_exist_ok=True)
    assert load_model(run, FAMILIES).shape == model.shape  # a run folder names its model


@pytest.mark.parametrize("damage", ["weights", "no weights", "ctc head", "shape", "family", "card", "no card"])
def test_a_damaged_folder_is_named(folder, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    card = json.loads((copy / "rkd.json").read_text())
    if damage == "weights":
        (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:2000])
    elif damage == "no weights":
        (copy / "model.safetensors").unlink()
    elif damage == "ctc head":
        (copy / "ctc_head.safetensors").write_bytes(b"")
    elif damage == "shape":
        card["shape"]["d_model"] = 64
        (copy / "rkd.json").write_text(json.dumps(card))
    elif damage == "family":
        card["family"] = "os.system"
        (copy / "rkd.json").write_text(json.dumps(card))
    elif damage == "card":
        (copy / "rkd.json").write_text("{")
    else:
        (copy / "rkd.json").unlink()
    with pytest.raises(CheckpointError, match="copy"):
        load_model(copy, FAMILIES)


def test_a_clip_longer_than_the_window_is_refused(make_whisper):
    with pytest.raises(DataError, match="longer than the model's window"):
        make_whisper().transcribe(*padded([clip(WINDOW + 1000)]))


# --- starting from a teacher -----------------------------------------------------------------------------------------


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "n, chosen, expected",
    [(2, None, [0, 4]), (3, None, [0, 2, 4]), (1, None, [4]), (2, [1, 3], [1, 3]), (5, None, [0, 1, 2, 3, 4])],
)
def test_layers_are_copied(make_whisper, n, chosen, expected):
    teacher, student = (
        make_whisper(1, encoder_layers=5, decoder_layers=5),
        make_whisper(2, encoder_layers=n, decoder_layers=n),
    )
    student.start_from(teacher, chosen, chosen)
    for part in ("encoder", "decoder"):
        ours, theirs = getattr(student.hf.model, part).layers, getattr(teacher.hf.model, part).layers
        for layer, index in zip(ours, expected, strict=True):
            assert same(layer, theirs[index])
            assert sum(same(layer, other) for other in theirs) == 1
    for path in ("encoder.conv1", "encoder.conv2", "encoder.layer_norm", "encoder.embed_positions",
    "decoder.embed_tokens",
                 "decoder.embed_positions", "decoder.layer_norm"):  # fmt: skip
        assert same(student.hf.model.get_submodule(path), teacher.hf.model.get_submodule(path)), path
    assert same(student.ctc_head, teacher.ctc_head)
    assert student.hf.proj_out.weight is student.hf.model.decoder.embed_tokens.weight


def test_a_copy_of_all_layers_is_the_teacher(make_whisper):
    teacher, student = make_whisper(1), make_whisper(2)
    student.start_from(teacher, None, None)
    x = padded([clip(9000)])
    with torch.no_grad():
        a, b = teacher(*x, label_batch([[0, 1]])), student(*x, label_batch([[0, 1]]))
    assert all(torch.equal(a[k].values_BND, b[k].values_BND) for k in a)


def test_a_copy_does_not_share_memory(make_whisper):
    teacher, student = make_whisper(1), make_whisper(2)
    student.start_from(teacher, None, None)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize(
    "shape, chosen, match",
    [
        ({"d_model": 16}, None, "student.d_model=32"),
        ({"ffn": 32}, None, "student.ffn=64"),
        ({"n_mels": 8}, None, "student.n_mels=16"),
        ({"encoder_layers": 3}, None, "3 layers and the teacher 2"),
        ({"encoder_layers": 1}, [2], r"student.encoder_from=\[2\]"),
        ({"encoder_layers": 1}, [0, 1], "expected 1 layer numbers from 0 to 1"),
    ],
)
def test_what_cannot_be_copied_is_refused(make_whisper, shape, chosen, match):
    with pytest.raises(ConfigError, match=match):
        make_whisper(2, **shape).start_from(make_whisper(1), chosen, None)
