"""Texts as they are learned and as their words are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkd.errors import ConfigError
from rkd.normalisation import LEARNED, SCORED, normaliser


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
    assert normaliser("basic")(text) == expected


@given(st.text())
def test_normaliser_is_idempotent(text):
    once = normaliser("basic")(text)
    assert normaliser("basic")(once) == once and once == " ".join(once.split())


def test_none_keeps_all_but_the_space_around():
    assert normaliser("none")(" A, b ") == "A, b"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("whisper", "Ça, c'est l’été (rires)!", "ça c est l été"),
        ("whisper_english", "Mr. Brown's colour: I'm gonna pay $20 for twenty-five percent.",
         "mister brown is color i am going to pay $20 for 25%"),
    ],
)  # fmt: skip
def test_those_of_whisper(kind, text, expected):
    assert normaliser(kind)(text) == expected


@pytest.mark.parametrize("text", ["one two three", "Mr. Brown's colour, 3rd of May", "the 1920s; twenty-one thousand"])
def test_whispers_english_as_transformers_has_it(text):
    import json
    from pathlib import Path

    import whisper_normalizer
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    spellings = Path(whisper_normalizer.__file__).parent / "normalizers" / "english.json"
    theirs = EnglishTextNormalizer(json.loads(spellings.read_text(encoding="utf-8")))
    assert normaliser("whisper_english")(text) == theirs(text)
    assert normaliser("whisper")(text) == BasicTextNormalizer()(text).strip()


@pytest.mark.parametrize("kind", SCORED)
def test_nothing_stays_nothing(kind):
    assert normaliser(kind)("") == ""


def test_an_unknown_one_is_refused():
    assert set(LEARNED) < set(SCORED)
    with pytest.raises(ConfigError, match="basic, none"):
        normaliser("english")
