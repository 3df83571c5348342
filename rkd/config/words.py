"""Words for messages: the nearest known name, and values as the command line writes them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

# Other names that people know from elsewhere.
ALIASES = {
    "lr": "learning_rate", "epochs": "steps", "max_steps": "steps", "batch_size": "batch_seconds", "fp16": "precision",
    "grad_clip": "clip_norm", "snr_db": "snr", "num_workers": "workers", "gpu": "device",
}  # fmt: skip


def nearest(word: str, words: Sequence[str]) -> str | None:
    """Return the most similar word, if any is at all."""
    return next(iter(difflib.get_close_matches(word, words, 1, 0.4)), None)


def nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """Return the most similar key, by the whole and by the last part, which may be known under another name."""
    last = key.rpartition(".")[2]
    last = ALIASES.get(last, last)
    key = f"{key.rpartition('.')[0]}.{last}".lstrip(".")

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        return whole + difflib.SequenceMatcher(None, last, other.rpartition(".")[2]).ratio()

    best = max(keys, key=likeness, default=None)
    return best if best is not None and likeness(best) > 1.0 else None


def show(value: Any) -> str:
    """Write a value as a command line does."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, cut to what a person reads."""
    return " ".join(str(error).split())[:300]
