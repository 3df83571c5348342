"""A teacher's transcripts: confidences against independent computations, and the filters' laws."""

# B batch, N frames, L label tokens, V vocabulary

import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import ctc_forward, log_softmax
from model_clips import clip, label_batch, padded
from pretrained import whisper_folder

from rkd.data.store import Store, StoreWriter, part_path
from rkd.errors import DataError
from rkd.models.denoisers.mask import MaskDenoiser
from rkd.models.enhanced import Enhanced
from rkd.models.hub_whisper import HubWhisper
from rkd.stages.transcription import labels_of_teacher, transcripts
from rkd.tokenizer import untimed
from rkd.transcripts import (
    FILTERS,
    Heard,
    Transcript,
    Writer,
    broken,
    compression_ratio,
    confidences,
    load,
    select,
    texts_before,
    transcribe,
    wer,
)

OFF = dict.fromkeys(FILTERS)


def save(folder, told):
    with Writer(folder) as writer:
        writer.add(told)


# --- confidence ------------------------------------------------------------------------------------------------------


def test_a_decoders_confidence_is_the_mean_over_its_tokens(taught):
    model, batch = taught.model, taught.batch
    tokens = model.write(batch.clean_BT, batch.lengths_B)
    with torch.no_grad():
        logits_BLV = model(batch.clean_BT, batch.lengths_B, label_batch(tokens))["logits"].values_BND
    expected = [
        np.mean([log_softmax(logits_BLV[b, i])[token] for i, token in enumerate(row)]) for b, row in enumerate(tokens)
    ]
    assert confidences(model, batch.clean_BT, batch.lengths_B, tokens).tolist() == pytest.approx(expected, rel=1e-4)
    assert all(row[-1] == model.tokenizer.eos_token_id for row in tokens)  # which is among them


@pytest.mark.parametrize("beams", [1, 4])
def test_a_ctc_models_confidence_is_that_of_all_alignments(make_ctc, beams):
    model = make_ctc(3)
    with torch.no_grad():
        model.head.weight *= 20
    x = padded([clip(20000, 1), clip(9000, 2), clip(3000, 3)])
    tokens = model.write(*x, beams)
    assert any(tokens)
    with torch.no_grad():
        stream = model(*x, label_batch([[0]] * 3))["ctc_logits"]
    blank = model.tokenizer.pad_token_id
    expected = [
        -ctc_forward(stream.values_BND[b, :n].double().numpy(), row, blank) / (len(row) + 1)
        for b, (row, n) in enumerate(zip(tokens, stream.lengths_B.tolist(), strict=True))
    ]
    assert confidences(model, *x, tokens).tolist() == pytest.approx(expected, rel=1e-3)


def test_silence_has_a_confidence_too(make_ctc):
    model = make_ctc(0)
    x = padded([clip(8000)])
    with torch.no_grad():
        log_p_NV = log_softmax(model(*x, label_batch([[0]]))["ctc_logits"].values_BND[0].double().numpy())
    expected = log_p_NV[:, model.tokenizer.pad_token_id].sum()
    assert confidences(model, *x, [[]]).tolist() == pytest.approx([expected], rel=1e-4)


def test_a_confidence_does_not_depend_on_the_batch(taught):
    model, batch = taught.model, taught.batch
    together = transcribe(model, batch.clean_BT, batch.lengths_B, 1)
    assert [t.text for t in together] == model.transcribe(batch.clean_BT, batch.lengths_B)
    for i in (0, 3, 6):
        [alone] = transcribe(model, batch.clean_BT[i : i + 1, : batch.lengths_B[i]], batch.lengths_B[i : i + 1], 1)
        assert alone.text == together[i].text and alone.confidence == pytest.approx(together[i].confidence, abs=1e-4)


def test_what_was_learned_is_sure_and_noise_is_not(taught):
    model, batch = taught.model, taught.batch
    known = confidences(model, batch.clean_BT, batch.lengths_B, model.write(batch.clean_BT, batch.lengths_B))
    x = padded([clip(16000, seed) for seed in range(4)])
    unknown = confidences(model, *x, model.write(*x))
    assert float(known.min()) > float(unknown.max()) and float(known.max()) <= 0


def test_a_model_that_wears_a_denoiser_has_confidences(taught):
    denoiser = MaskDenoiser(width=8, layers=1)
    worn = Enhanced(taught.model, denoiser, 0.0).eval()  # the denoiser's share is nothing
    x = taught.batch.clean_BT[:2], taught.batch.lengths_B[:2]
    assert [t.text for t in transcribe(worn, *x, 1)] == [t.text for t in transcribe(taught.model, *x, 1)]
    expected = [t.confidence for t in transcribe(taught.model, *x, 1)]
    assert [t.confidence for t in transcribe(worn, *x, 1)] == pytest.approx(expected, abs=1e-4)


def test_transcripts_come_back_from_their_file(tmp_path):
    told = {"a/1": Transcript("eins zwei ☂", -0.1234567890123), "b": Transcript("", -7.0)}
    save(tmp_path, told)
    assert load(tmp_path) == told


# --- filters ---------------------------------------------------------------------------------------------------------


def heard(text="one two", confidence=-0.5, seconds=1.0, reference=None):
    return Heard(Transcript(text, confidence), seconds, wer(reference or "", text))


@pytest.mark.parametrize(
    "utterance, name, kept_at, left_out_at",
    [
        (heard("one two three", reference="one two four five"), "max_wer", 0.5, 0.49),
        (heard("one one", reference="one"), "max_wer", 1.0, 0.9),
        (heard(confidence=-0.5), "min_confidence", -0.5, -0.4),
        (heard("a b c d", seconds=0.5), "max_characters_per_second", 14, 13.9),
        (heard("one two"), "min_words", 2, 3),
        (heard(""), "max_compression", 0.1, None),
        (heard("la " * 100), "max_compression", 25, 2.4),
    ],
)
def test_a_limit_leaves_out_what_lies_beyond_it(utterance, name, kept_at, left_out_at):
    assert broken(utterance, OFF | {name: kept_at}) == []
    if left_out_at is not None:
        assert broken(utterance, OFF | {name: left_out_at}) == [name]


@pytest.mark.parametrize("reference", [None, ""])
def test_without_a_reference_there_are_no_word_errors(reference):
    assert broken(heard("anything", reference=reference), OFF | {"max_wer": 0.0}) == []


def test_the_compression_ratio_is_whispers():
    plain = "the birch canoe slid on the smooth planks glue the sheet to the dark blue background"
    assert compression_ratio(plain) == len(plain) / len(zlib.compress(plain.encode())) < 2.4
    assert compression_ratio("thank you for watching " * 10) > 2.4
    assert compression_ratio("é") == 2 / len(zlib.compress("é".encode()))  # bytes, not characters


WORDS = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6).map(" ".join)
UTTERANCES = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.builds(heard, WORDS, st.floats(-5, 0), st.floats(0.1, 3), st.none() | WORDS),
    max_size=12,
)
LIMITS = st.fixed_dictionaries({
    "max_wer": st.none() | st.floats(0, 2), "min_confidence": st.none() | st.floats(-5, 0),
    "max_compression": st.none() | st.floats(0.1, 3), "max_characters_per_second": st.none() | st.floats(1, 60),
    "min_words": st.none() | st.integers(1, 4),
})  # fmt: skip


def kept_of(utterances, limits):
    try:
        return select(utterances, limits)[0]
    except DataError:
        return []


@settings(max_examples=60, deadline=None)
@given(UTTERANCES, LIMITS)
def test_what_is_kept_breaks_nothing_and_the_counts_are_exact(utterances, limits):
    assert limits.keys() == FILTERS.keys()
    kept = kept_of(utterances, limits)
    assert kept == [name for name, u in utterances.items() if not broken(u, limits)]
    if kept:
        on = [name for name, limit in limits.items() if limit is not None]
        counts = select(utterances, limits)[1]
        assert dict(counts) == {name: sum(name in broken(u, limits) for u in utterances.values()) for name in on}
        assert len(utterances) - len(kept) <= sum(counts.values())
    assert kept_of(utterances, OFF) == list(utterances)


@settings(max_examples=60, deadline=None)
@given(UTTERANCES, LIMITS, st.sampled_from(sorted(FILTERS)), st.floats(0, 1))
def test_a_stricter_limit_keeps_no_more(utterances, limits, name, by):
    limit = limits[name]
    stricter = limits | {name: {"max": 0.5, "min": 1}[name[:3]] if limit is None else
                         limit - by if name.startswith("max") else limit + by}  # fmt: skip
    assert set(kept_of(utterances, stricter)) <= set(kept_of(utterances, limits))


def test_none_left_says_what_to_set():
    utterances = {str(i): heard("one", -1.0, reference="two") for i in range(5)}
    utterances["5"] = heard("one", -3.0, reference="one")
    with pytest.raises(DataError) as told:
        select(utterances, OFF | {"max_wer": 0.1, "min_confidence": -2.0})
    message = str(told.value)
    assert "none of the 6 training utterances" in message and "max_wer 5, min_confidence 1" in message
    assert "raise transcripts.max_wer=0.1" in message


# --- as labels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def transcribed(speech, tmp_path):
    """A function that returns as much of a plan as labels need, with transcripts of the tones."""
    told = {}
    for split in ("train", "validation", "test"):
        store = Store.open(speech, split)
        for i, (name, text) in enumerate(zip(store.ids, store.texts, strict=True)):
            told[name] = Transcript(f"{text} one" if i % 4 == 0 else text, -0.1 * (i % 3))
    save(tmp_path, told)
    step = SimpleNamespace(folder=tmp_path, state="done", is_run=False)

    def plan(labels="teacher", folder=speech, **limits):
        cfg = {
            "loss": {"labels": labels}, "device": "cpu",
            "transcripts": {"beams": 1, "timestamps": 0.0, "text_before": 0.0, **OFF, **limits},
            "scoring": {"normaliser": "basic"},
        }  # fmt: skip
        return SimpleNamespace(cfg=cfg, speech=SimpleNamespace(folder=folder), transcription=lambda: step)

    return plan, told


def test_training_utterances_alone_are_left_out(transcribed, capsys):
    plan, told = transcribed
    written = transcripts(plan(), "teacher", True)
    assert labels_of_teacher(plan(), written) == told and capsys.readouterr().err == ""
    kept = labels_of_teacher(plan(max_wer=0.0, min_confidence=-0.15), written)
    wrong = {f"train-{i}" for i in range(24) if i % 4 == 0}
    unsure = {f"train-{i}" for i in range(24) if i % 3 == 2}
    assert kept == {name: t for name, t in told.items() if name not in wrong | unsure}
    said = capsys.readouterr().err
    assert f"left out: {len(wrong | unsure)} of 24 training utterances (max_wer 6, min_confidence 8)" in said


def test_limits_that_change_nothing_are_said(transcribed, capsys):
    plan, _ = transcribed
    assert labels_of_teacher(plan("text", min_words=1), None) is None
    assert "transcripts.min_words changes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["timestamps", "text_before"])
def test_prompts_that_change_nothing_are_said(transcribed, capsys, key):
    plan, _ = transcribed
    assert labels_of_teacher(plan("text", **{key: 0.5}), None) is None
    assert f"transcripts.{key} changes nothing" in capsys.readouterr().err


def test_without_text_there_are_no_word_errors_to_limit(transcribed, speech, tmp_path, capsys):
    plan, told = transcribed
    mute = tmp_path / "mute"
    mute.mkdir()
    with StoreWriter(part_path(mute, 0)) as writer:
        for name in told:
            writer.add(name, name.partition("-")[0], None, None, None, None, np.ones(1600, np.int16), -20.0)
    (mute / "summary.json").write_text('{"has_text": false}')
    without_text = plan("text", mute, max_wer=0.0)
    labels = labels_of_teacher(without_text, transcripts(without_text, "teacher"))
    assert labels == told
    assert "transcripts.max_wer changes nothing" in capsys.readouterr().err


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_what_was_said_before_is_of_the_same_speaker():
    ids = ["a1", "a2", "a2#sp0.9", "b1", "a3", "c1", "c2", "n1", "n2", "a1#sp0.9"]
    speakers = ["a", "a", "a", "b", "a", "c", "c", None, None, "a"]
    texts = {name: f"text {name}" for name in ids if name != "c1"}
    assert texts_before(ids, speakers, texts) == {"a2": "text a1", "a2#sp0.9": "text a1"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_nobody_is_told_what_he_says_himself(utterances):
    ids = [f"{i}{'#sp0.9' if perturbed else ''}" for i, (_, perturbed) in enumerate(utterances)]
    before = texts_before(ids, [speaker for speaker, _ in utterances], {name: name for name in ids})
    assert all(int(text) < int(name) and "#" not in text for name, text in before.items() if "#" not in name)


def test_timestamps_are_not_normalised():
    written = Transcript("Hello, there! You.", -0.5, "<|0.00|> Hello, there!<|1.20|><|1.40|> You.<|2.00|>")
    assert written.normalised(str.lower) == Transcript(
        "hello, there! you.", -0.5, "<|0.00|> hello, there!<|1.20|><|1.40|> you.<|2.00|>"
    )
    assert Transcript("A", 0.0).normalised(str.lower) == Transcript("a", 0.0)


def test_a_transcript_is_asked_for_with_its_times(tmp_path):
    model = HubWhisper(whisper_folder(tmp_path / "model", "v2"), window="trimmed").eval()
    x = padded([clip(20000, 1), clip(31000, 2)])
    timed, plain = transcribe(model, *x, 1, True), transcribe(model, *x, 1)
    assert all(t.timed.startswith("<|0.") and t.timed != t.text and t.confidence < 0 for t in timed)
    assert [untimed(t.timed) for t in timed] == [t.text for t in timed] and all(t.timed is None for t in plain)
    assert any(t.text for t in timed)
    save(tmp_path, {"a": timed[0], "b": plain[0]})
    assert load(tmp_path) == {"a": timed[0], "b": plain[0]}
