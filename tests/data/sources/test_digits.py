"""Digit strings grow without changing, and the synthesiser repeats itself."""

import numpy as np
import pytest

from rkd.data import espeak
from rkd.data.corpus import write_store
from rkd.data.sources.digits import Digits
from rkd.data.store import SPLITS, Store
from rkd.errors import ConfigError


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
    for voice in voices:
        pcm = espeak.speak(espeak.Request("one two", voice))
        assert pcm.dtype == np.int16 and len(pcm) > 0.2 * espeak.RATE_HZ and np.abs(pcm).max() > 1000, voice


def test_speech_depends_on_the_request_alone():
    a, b = espeak.Request("three", "en-029+klatt4"), espeak.Request("nine four", "en-us+f1", rate_wpm=150, pitch=40)
    first = [espeak.speak(request) for request in (a, b, a)]
    espeak._process.cache_clear()  # another process
    second = [espeak.speak(request) for request in (b, a)]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[0], second[1]) and np.array_equal(first[1], second[0])


@pytest.mark.parametrize("voice", ["xx-none+f1", "en-us+nobody"])
def test_unknown_voices_are_said(voice):
    with pytest.raises(ConfigError, match="no voice"):
        espeak.speak(espeak.Request("one", voice))


def test_digits_store(tmp_path):
    summary = write_store(Digits(n_train=6, n_validation=2, n_test=3), tmp_path)
    assert summary["has_text"] and summary["rejected"] == {}
    assert {s: summary["splits"][s]["utterances"] for s in SPLITS} == {"train": 6, "validation": 2, "test": 3}
    store = Store.open(tmp_path, "train")
    assert list(store.texts) == [request.text for _, request in Digits(n_train=6).requests("train")]
    assert (store.levels_db > -40).all() and (store.n_samples > 4000).all()
