"""Sources find what is there, say why they leave something out, and never put a speaker or recording in two splits."""

import inspect
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.data import espeak
from rkd.data.corpus import normalise_text, write_store
from rkd.data.sources import (
    Digits,
    Folder,
    Fsdd,
    Manifest,
    Mixture,
    Rejected,
    Utterance,
    assign,
)
from rkd.data.store import SPLITS, Store
from rkd.errors import ConfigError, DataError

FSDD = Path(__file__).resolve().parents[2] / "../shared/data/speech/fsdd"
needs_fsdd = pytest.mark.skipif(not FSDD.is_dir(), reason="needs the Free Spoken Digit Dataset in ../shared/data")


def tone(seconds=0.5, rate_hz=16000, hz=440.0, gain=0.1):
    return (gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def save(path, text=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(**kwargs), kwargs.get("rate_hz", 16000))
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


class Listed:
    """A source of given utterances."""

    def __init__(self, *found):
        self.found = found

    def input_paths(self):
        return []

    def utterances(self):
        yield from self.found


def spoken(id, split="train", text="one", waveform=None, speaker=None, rate_hz=16000):
    return Utterance(id, split, text, speaker, "en", tone() if waveform is None else waveform, rate_hz)


def one_each(text="one"):
    return [spoken(f"base-{split}", split, text) for split in SPLITS]


# Configuration


@pytest.mark.parametrize("source", [Digits, Fsdd, Folder, Manifest])
def test_yaml_and_constructor_have_the_same_defaults(source):
    path = Path(__file__).resolve().parents[2] / f"conf/data/{source.__name__.lower()}.yaml"
    conf = yaml.safe_load(path.read_text())
    assert conf.pop("_target_") == f"rkd.data.sources.{source.__name__}"
    of_the_stage = {key: conf.pop(key) for key in ("normaliser", "tokenizer", "min_seconds", "max_seconds")}
    assert of_the_stage == {"normaliser": "basic", "tokenizer": "auto", "min_seconds": 0.1, "max_seconds": 30.0}
    parameters = inspect.signature(source).parameters
    assert set(conf) == set(parameters)
    conf["path"] = "???"
    for key, parameter in parameters.items():
        default = source.variants if key == "variants" else parameter.default
        default = list(default) if isinstance(default, tuple) else default
        assert conf[key] == ("???" if default is inspect.Parameter.empty else default), key


# Splits


@settings(max_examples=30)
@given(st.text(), st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)))
def test_assign_gives_everything_to_a_split_that_has_a_share(key, weights):
    fractions = [weight / sum(weights) for weight in weights]
    assert fractions[SPLITS.index(assign(key, fractions))] > 0


def test_assign_follows_the_fractions():
    splits = [assign(f"speaker{n}", (0.6, 0.3, 0.1)) for n in range(5000)]
    assert [splits.count(split) / 5000 for split in SPLITS] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.4, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_must_be_three_shares(fractions):
    with pytest.raises(ConfigError, match="sum to 1"):
        Folder("x", fractions=fractions)


@pytest.mark.parametrize("source", [Fsdd, Folder, Manifest])
def test_unknown_split_names_the_allowed_ones(source):
    with pytest.raises(ConfigError, match=r"data\.split=random.*official, speaker, hash"):
        source("x", split="random")


@pytest.mark.parametrize("source", [Fsdd, Folder, Manifest])
def test_missing_path_names_the_key(source, tmp_path):
    with pytest.raises(DataError, match=r"data\.path"):
        source(str(tmp_path / "nowhere.csv")).input_paths()


# Text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("Don’t 'stop'", "don't stop"),
        ("twenty-one\tyears\n", "twenty one years"),
        ("ＦＵＬＬ ｗｉｄｔｈ ﬁ", "full width fi"),
        ("Café — naïve…", "café naïve"),
        ("हिन्दी!", "हिन्दी"),
        ("' - '", ""),
    ],
)
def test_basic_normaliser(text, expected):
    assert normalise_text(text, "basic") == expected


@given(st.text())
def test_normaliser_is_idempotent(text):
    once = normalise_text(text, "basic")
    assert normalise_text(once, "basic") == once and once == " ".join(once.split())


def test_normaliser_none_and_unknown():
    assert normalise_text(" A, b ", "none") == "A, b"
    with pytest.raises(ConfigError, match="basic, none"):
        normalise_text("a", "english")


# Digits


def test_digits_are_stable_when_the_corpus_grows_and_voices_stay_in_one_split():
    small, large = Digits(n_train=50), Digits(n_train=500)
    assert small.requests("train") == large.requests("train")[:50]
    assert Digits(n_train=50, seed=1).requests("train") != small.requests("train")
    variants = {s: {request.voice.split("+")[1] for _, request in large.requests(s)} for s in SPLITS}
    assert not variants["train"] & variants["test"]
    assert not variants["train"] & variants["validation"] and not variants["validation"] & variants["test"]


def test_digits_follow_their_limits_and_test_has_2000_words():
    digits = Digits()
    requests = [request for split in SPLITS for _, request in digits.requests(split)]
    lengths = [len(request.text.split()) for request in requests]
    assert set(lengths) == {2, 3, 4, 5, 6}
    assert {word for request in requests for word in request.text.split()} == set(digits.words)
    assert min(r.rate_wpm for r in requests) == 120 and max(r.rate_wpm for r in requests) == 220
    assert min(r.pitch for r in requests) == 30 and max(r.pitch for r in requests) == 70
    assert sum(len(request.text.split()) for _, request in digits.requests("test")) >= 2000


def test_a_voice_in_two_splits_is_a_configuration_error():
    with pytest.raises(ConfigError, match="f1"):
        Digits(variants={"train": ["f1", "m1"], "validation": ["f2"], "test": ["f1"]})


def test_every_default_voice_speaks():
    digits = Digits()
    voices = [f"{digits.accents[0]}+{name}" for names in digits.variants.values() for name in names]
    voices += [f"{accent}+m1" for accent in digits.accents]
    for voice, pcm in zip(voices, espeak.synthesise(espeak.Request("one two", v) for v in voices), strict=True):
        assert pcm.dtype == np.int16 and len(pcm) > 0.2 * espeak.RATE_HZ and np.abs(pcm).max() > 1000, voice


def test_speech_depends_on_the_request_alone():
    a, b = espeak.Request("three", "en-029+klatt4"), espeak.Request("nine four", "en-us+f1", rate_wpm=150, pitch=40)
    first = list(espeak.synthesise([a, b, a], workers=1))
    second = list(espeak.synthesise([b, a], workers=2))
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[0], second[1]) and np.array_equal(first[1], second[0])


@pytest.mark.parametrize("voice", ["xx-none+f1", "en-us+nobody"])
def test_unknown_voices_are_said(voice):
    with pytest.raises(DataError, match="no voice"):
        list(espeak.synthesise([espeak.Request("one", voice)]))


def test_digits_store(tmp_path):
    summary = write_store(Digits(n_train=6, n_validation=2, n_test=3), tmp_path)
    assert summary["has_text"] and summary["rejected"] == {}
    assert {s: summary["splits"][s]["utterances"] for s in SPLITS} == {"train": 6, "validation": 2, "test": 3}
    store = Store.open(tmp_path, "train")
    assert store.texts == [request.text for _, request in Digits(n_train=6).requests("train")]
    assert (store.levels_db > -40).all() and (store.n_samples > 4000).all()


# FSDD


def fake_fsdd(folder, speakers=("ann", "bob", "cat"), n=12):
    for s, speaker in enumerate(speakers):
        for digit in range(10):
            for index in range(n):
                # The frequency is the recording's mark.
                hz = 200 + 1.5 * ((s * 10 + digit) * n + index)
                save(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", seconds=0.12, rate_hz=8000, hz=hz)


@pytest.mark.parametrize("split", ["official", "speaker", "hash"])
def test_fsdd_never_shares_a_recording(tmp_path, monkeypatch, split):
    fake_fsdd(tmp_path)
    source = Fsdd(str(tmp_path), split, 40, 40, 40, test_speakers=["bob"])
    pools = {}
    monkeypatch.setattr(source, "_strings", lambda name, pool: pools.update({name: pool}) or ())
    assert not list(source.utterances())
    marks = {s: [x.tobytes() for clips in pools[s].values() for _, x in clips] for s in SPLITS}
    every = [mark for split_marks in marks.values() for mark in split_marks]
    assert len(every) == 360 == len(set(every))
    if split == "speaker":
        assert set(pools["test"]) == {"bob"} and "bob" not in pools["train"] and "bob" not in pools["validation"]
    if split == "official":
        assert len(marks["test"]) == len(marks["validation"]) == 150


def test_fsdd_strings_have_one_speaker_and_gaps(tmp_path):
    fake_fsdd(tmp_path)
    source = Fsdd(str(tmp_path), n_train=20, n_validation=1, n_test=1, gap_seconds=[0.1, 0.2])
    (tmp_path / "recordings" / "3_ann_99.wav").write_text("broken")
    (tmp_path / "recordings" / "three.wav").write_text("broken")
    found = list(source.utterances())
    assert [one.kind for one in found if isinstance(one, Rejected)] == [
        "cannot be decoded as audio",
        "file name is not {digit}_{speaker}_{index}",
    ]
    for one in found[2:]:
        n = len(one.text.split())
        seconds = len(one.waveform) / one.rate_hz
        assert 2 <= n <= 6 and n * 0.12 + (n - 1) * 0.099 < seconds < n * 0.12 + (n - 1) * 0.201
        assert one.speaker in ("ann", "bob", "cat") and one.language == "en"


def test_fsdd_speaker_split_needs_a_known_speaker(tmp_path):
    fake_fsdd(tmp_path, n=1)
    with pytest.raises(ConfigError, match="test_speakers"):
        Fsdd(str(tmp_path), "speaker")
    with pytest.raises(DataError, match="there are ann, bob, cat"):
        list(Fsdd(str(tmp_path), "speaker", test_speakers=["dora"]).utterances())


@needs_fsdd
def test_real_fsdd(tmp_path):
    source = Fsdd(str(FSDD), n_train=20, n_validation=10, n_test=10)
    assert len(source.input_paths()) == 2000
    summary = write_store(source, tmp_path)
    assert summary["rejected"] == {} and summary["splits"]["train"]["utterances"] == 20


# Folder


def test_folder_reads_texts_and_speakers(tmp_path):
    save(tmp_path / "ann" / "a.wav", "Hello")
    save(tmp_path / "bob" / "b.flac", rate_hz=8000)
    save(tmp_path / "c.ogg", "root")
    save(tmp_path / ".hidden" / "d.wav")
    source = Folder(str(tmp_path), language="en")
    found = {one.id: one for one in source.utterances()}
    assert {(id, u.text, u.speaker, u.rate_hz) for id, u in found.items()} == {
        ("ann/a", "Hello", "ann", 16000),
        ("bob/b", None, "bob", 8000),
        ("c", "root", None, 16000),
    }
    assert len(source.input_paths()) == 5


def test_folder_official_split(tmp_path):
    for name in ("train/ann/a", "valid/b", "test/bob/c", "other/d"):
        save(tmp_path / f"{name}.wav", "x")
    found = list(Folder(str(tmp_path), "official").utterances())
    assert {(u.id, u.split, u.speaker) for u in found if isinstance(u, Utterance)} == {
        ("train/ann/a", "train", "ann"),
        ("valid/b", "validation", None),
        ("test/bob/c", "test", "bob"),
    }
    assert [one.id for one in found if isinstance(one, Rejected)] == ["other/d"]


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(0, 60), min_size=4, max_size=12), st.sets(st.integers(61, 90), max_size=5))
def test_splits_are_stable_when_data_is_added_and_speakers_do_not_overlap(tmp_path_factory, first, more):
    folder = tmp_path_factory.mktemp("folder")

    def splits(by):
        return {u.id: (u.split, u.speaker) for u in Folder(str(folder), by).utterances()}

    for n in first:
        save(folder / f"s{n % 7}" / f"{n}.wav", seconds=0.01)
    before = {by: splits(by) for by in ("hash", "speaker")}
    for n in more:
        save(folder / f"s{n % 7}" / f"{n}.wav", seconds=0.01)
    for by, old in before.items():
        after = splits(by)
        assert {id: after[id] for id in old} == old and len(after) == len(first) + len(more)
    of_speaker = defaultdict(set)
    for split, speaker in splits("speaker").values():
        of_speaker[speaker].add(split)
    assert all(len(found) == 1 for found in of_speaker.values())


def test_unknown_speaker_is_rejected_with_what_to_do(tmp_path):
    save(tmp_path / "a.wav")
    (rejected,) = Folder(str(tmp_path), "speaker").utterances()
    assert rejected.kind == "speaker unknown" and "data.split=hash" in rejected.reason


def test_folder_without_audio(tmp_path):
    with pytest.raises(DataError, match="no audio files"):
        Folder(str(tmp_path)).input_paths()


# Manifest


def write_manifest(folder, kind, rows):
    path = folder / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        columns = list(rows[0])
        lines = [columns, *([row.get(column) or "" for column in columns] for row in rows)]
        path.write_text("".join(("\t" if kind == "tsv" else ",").join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize(("audio_column", "text_column"), [("path", "sentence"), ("audio_filepath", "text")])
def test_manifest_formats_and_columns(tmp_path, kind, audio_column, text_column):
    save(tmp_path / "clips" / "a.wav")
    save(tmp_path / "clips" / "b.wav")
    rows = [
        {audio_column: "clips/a.wav", text_column: "hello", "speaker": "ann", "split": "dev", "language": "en"},
        {audio_column: "clips/b.wav", text_column: None, "speaker": None, "split": "train", "language": None},
        {audio_column: "clips/gone.wav", text_column: "x", "split": "test"},
        {audio_column: None, text_column: "x", "split": "test"},
        {audio_column: "clips/a.wav", text_column: "x", "split": "elsewhere"},
    ]
    source = Manifest(str(write_manifest(tmp_path, kind, rows)), "official")
    found = list(source.utterances())
    assert [(u.id, u.split, u.text, u.speaker, u.language) for u in found[:2]] == [
        ("clips/a", "validation", "hello", "ann", "en"),
        ("clips/b", "train", None, None, None),
    ]
    first = 1 if kind == "jsonl" else 2
    for n, (rejected, kind_of_reason) in enumerate(
        zip(found[2:], ["no such audio file", "no audio path", "in no split"], strict=True), first + 2
    ):
        assert rejected.kind == kind_of_reason and f"line {n}" in rejected.reason
    assert len(source.input_paths()) == 3


def test_manifest_says_what_it_cannot_read(tmp_path):
    save(tmp_path / "a.wav")
    path = tmp_path / "list.jsonl"
    path.write_text('{"audio": "a.wav"}\n\n{oops\n[1]\n')
    good, bad, also_bad = Manifest(str(path)).utterances()
    assert good.id == "a" and "line 3" in bad.reason and "line 4" in also_bad.reason
    table = tmp_path / "list.csv"
    table.write_text("file,words\na.wav,x\n")
    with pytest.raises(DataError, match="audio_filepath"):
        list(Manifest(str(table)).utterances())


# Mixture


def test_mixture_trains_on_all_and_tests_on_some():
    mixture = Mixture({"real": Listed(*one_each()), "made": Listed(*one_each(), Rejected("x", "y"))}, ["real"])
    found = list(mixture.utterances())
    assert [(one.id, getattr(one, "source", None)) for one in found] == [
        ("real/base-train", "real"),
        ("real/base-validation", "real"),
        ("real/base-test", "real"),
        ("made/base-train", "made"),
        ("made/x", None),
    ]
    with pytest.raises(ConfigError, match="real"):
        Mixture({"real": Listed()}, ["unreal"])


# The store


def test_write_store_rejects_with_reasons(tmp_path):
    source = Listed(
        *one_each(),
        spoken("short", waveform=tone(0.05)),
        spoken("long", waveform=tone(3.0)),
        spoken("silent", waveform=np.zeros(16000, np.float32)),
        spoken("base-train"),
        spoken("no-text", text=None),
        spoken("no-words", text="..."),
        Rejected("broken", "cannot be decoded as audio (why)"),
    )
    summary = write_store(source, tmp_path, max_seconds=2)
    reasons = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "rejected.jsonl").open())}
    assert set(reasons) == {"short", "long", "silent", "base-train", "no-text", "no-words", "broken"}
    assert summary["rejected"] == {
        "too short": 1,
        "too long": 1,
        "silent": 1,
        "id is not unique": 1,
        "text without words": 1,
        "cannot be decoded as audio": 1,
        "no text": 1,
    }
    assert summary["has_text"] and summary == json.loads((tmp_path / "summary.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rejected.jsonl", "summary.json", "test.arrow", "train.arrow", "validation.arrow"
    ]  # fmt: skip


def test_a_corpus_without_text_is_unlabelled(tmp_path):
    summary = write_store(Listed(*one_each(text=None)), tmp_path)
    assert summary["has_text"] is False and summary["rejected"] == {}
    assert Store.open(tmp_path, "test").texts == [None]


def test_write_store_resamples_and_measures(tmp_path):
    write_store(Listed(*one_each(), spoken("eight", text="A, B", waveform=tone(1, 8000), rate_hz=8000)), tmp_path)
    store = Store.open(tmp_path, "train")
    assert store.ids == ["base-train", "eight"] and store.texts == ["one", "a b"]
    assert store.n_samples.tolist() == [8000, 16000]
    assert store.levels_db[1] == pytest.approx(20 * np.log10(0.1 / np.sqrt(2)), abs=0.3)
    assert np.abs(store.pcm(1)).max() == pytest.approx(0.1 * 32768, rel=0.05)


def test_an_empty_split_says_what_to_change(tmp_path):
    with pytest.raises(
        DataError, match=r"no utterance is left for test \(1 were rejected; silent: 1\); change data.split"
    ):
        write_store(Listed(*one_each()[:2], spoken("s", "test", waveform=np.zeros(9999, np.float32))), tmp_path)
