"""Tokenizers: every text comes back, special tokens come last, and a difference is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrained import whisper_folder

from rkd.errors import CheckpointError, DataError
from rkd.tokenizer import (
    MAX_CLOSED_VOCABULARY,
    SPECIAL,
    build_letters,
    build_tokenizer,
    decode,
    decode_timed,
    difference,
    encode,
    encode_all,
    encode_timed,
    load_tokenizer,
    lost_words,
    untimed,
)

LETTERS = "abcdeéßжあ'"
WORD = st.text(LETTERS, min_size=1, max_size=6)
MANY = [a + b for a in "abcdeéßжあ'" for b in "abcdeéßжあ'"]  # more words than a closed vocabulary holds


def test_words_or_characters():
    few = build_tokenizer(["one two", "three"])
    assert len(few) == 3 + len(SPECIAL) and len(encode(few, "two one two")) == 3 + 1
    many = build_tokenizer(MANY)
    assert len(MANY) > MAX_CLOSED_VOCABULARY and len(encode(many, "ab")) > 2
    assert len(build_tokenizer(["one two"], "char")) > len(build_tokenizer(["one two"], "word")) == 2 + len(SPECIAL)


@pytest.mark.parametrize("kind", ["word", "char"])
def test_special_tokens_come_last_and_have_their_roles(kind):
    tokenizer = build_tokenizer(["one two"], kind)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    assert sorted(ids) == list(range(len(tokenizer) - len(SPECIAL), len(tokenizer)))
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.pad_token_id == len(tokenizer) - 1


@settings(max_examples=40, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=8))
def test_characters_spell_any_words_of_the_corpus_alphabet(words):
    tokenizer, text = build_tokenizer(MANY, "char"), " ".join(words)
    ids = encode(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:-1]
    assert decode(tokenizer, ids) == text


@settings(max_examples=30, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=8))
def test_words_come_back(words):
    tokenizer, text = build_tokenizer(words, "word"), " ".join(words)
    assert len(encode(tokenizer, text)) == len(words) + 1
    assert decode(tokenizer, encode(tokenizer, text)) == text


@pytest.mark.parametrize("kind", ["word", "char"])
def test_saved_and_loaded(tmp_path, kind):
    from transformers import WhisperTokenizer

    tokenizer = build_tokenizer(["one two twenty"], kind)
    tokenizer.save_pretrained(tmp_path)
    loaded = WhisperTokenizer.from_pretrained(tmp_path)
    assert difference(tokenizer, loaded) is None
    assert encode(loaded, "two twenty") == encode(tokenizer, "two twenty")
    assert decode(loaded, encode(loaded, "two twenty")) == "two twenty"


@pytest.mark.parametrize(
    "make", [lambda t: build_tokenizer(t, "word"), lambda t: build_tokenizer(t, "char"), build_letters]
)
def test_many_texts_at_once_are_encoded_as_one_by_one(make):
    few = ["one two", "twenty one", "two"]
    tokenizer = make(few)
    texts = [*few, "", "two", *few[::-1]]
    assert list(encode_all(tokenizer, texts)) == [encode(tokenizer, text) for text in texts]
    assert [decode(tokenizer, ids) for ids in encode_all(tokenizer, texts)] == texts
    assert list(encode_all(tokenizer, [])) == []


def test_no_text():
    tokenizer = build_tokenizer(["one"])
    assert encode(tokenizer, "") == [tokenizer.eos_token_id] and decode(tokenizer, []) == ""
    with pytest.raises(DataError, match="no text"):
        build_tokenizer(["", ""])


def test_the_order_of_the_texts_does_not_matter():
    assert difference(build_tokenizer(["one two", "three"]), build_tokenizer(["three one", "two one"])) is None


def test_a_difference_is_named():
    teacher, student = build_tokenizer(["one two"]), build_tokenizer(["one three"])
    said = difference(teacher, student)
    assert "only the teacher has" in said and " two" in said and "only the student has" in said and " three" in said
    assert "6 tokens against 7" in difference(teacher, build_tokenizer(["one two three"]))


def test_words_that_a_vocabulary_cannot_write():
    letters = build_letters(["one two"])
    assert (
        decode(letters, encode(letters, "two one")) == "two one" and encode(letters, "one")[-1] == letters.eos_token_id
    )
    assert lost_words(letters, ["one two", "ten three"]) == (["three"], 4)
    words = build_tokenizer(["one two"], "word")
    assert lost_words(words, ["one ten", "two"]) == (["ten"], 3)
    assert lost_words(build_tokenizer(["one two"], "char"), ["two noon"]) == ([], 2)


@pytest.mark.parametrize("make", [build_letters, build_tokenizer])
def test_a_folder_says_which_kind_its_tokenizer_is(tmp_path, make):
    tokenizer = make(["über 2 one"])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer) and difference(loaded, tokenizer) is None
    assert decode(loaded, encode(loaded, "one über 2")) == "one über 2"


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)


def test_vocabularies_that_differ_in_what_is_special_are_said():
    one, other = build_tokenizer(["one two"]), build_tokenizer(["one two"])
    assert difference(one, other) is None
    other.add_special_tokens({"additional_special_tokens": [" two"]})
    assert one.get_vocab() == other.get_vocab() and "special in one of them alone" in (difference(one, other) or "")


PART = st.tuples(
    st.integers(0, 700), st.integers(0, 700), st.lists(st.sampled_from(["zero", "héllo", "a"]), max_size=3)
)


@given(st.lists(PART, max_size=4), st.booleans())
def test_texts_with_timestamps_come_back(pretrained_tokenizer, parts, plain_first):
    stamped = [f"<|{0.02 * a:.2f}|>{''.join(f' {w}' for w in words)}<|{0.02 * b:.2f}|>" for a, b, words in parts]
    timed = ("one two" if plain_first else "") + "".join(stamped)
    ids = encode_timed(pretrained_tokenizer, timed)
    assert decode_timed(pretrained_tokenizer, ids) == timed
    text = " ".join(["one", "two"] * plain_first + [w for *_, words in parts for w in words])
    assert untimed(timed) == text and ids[-1] == pretrained_tokenizer.eos_token_id
    first = pretrained_tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert sum(i >= first for i in ids) == 2 * len(parts)
    if not parts:
        assert ids == encode(pretrained_tokenizer, text)


@pytest.fixture(scope="module")
def pretrained_tokenizer(tmp_path_factory):
    return load_tokenizer(whisper_folder(tmp_path_factory.mktemp("tokenizer") / "v2", "v2"))
