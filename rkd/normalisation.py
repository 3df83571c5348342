"""What is done to a text before it is learned, and to two before their words are compared."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from rkd.errors import ConfigError

# By name. The first two are for labels, too; what Whisper's do to numbers and spellings nobody wants to learn.
LEARNED = ("basic", "none")
SCORED = (*LEARNED, "whisper", "whisper_english")


def normaliser(kind: str) -> Callable[[str], str]:
    """Return a normalisation of texts by its name.

    ``basic``: Unicode NFKC, lower case, punctuation and symbols replaced by spaces except for apostrophes inside words,
    one space between words. ``none``: unchanged but for space around it. ``whisper``, ``whisper_english``: those of
    Whisper (Radford et al. 2022, appendix C), for any language and for English, in which numbers become digits,
    spellings American and contractions whole words.

    Raises:
        ConfigError: an unknown name.
    """
    if kind == "basic":
        return _basic
    if kind == "none":
        return str.strip
    if kind == "whisper":
        from whisper_normalizer.basic import BasicTextNormalizer

        basic = BasicTextNormalizer()
        return lambda text: basic(text).strip()
    if kind == "whisper_english":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    raise ConfigError(f"there is no normaliser {kind}: choose one of {', '.join(SCORED)}")


def _basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).replace("’", "'")
    # Letters, marks (they make up words in many scripts) and numbers stay.
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for part in kept.split() if (word := part.strip("'")))
