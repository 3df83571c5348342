"""A teacher's transcripts as labels: how sure it is of them, and which of them a student is trained on.

Pseudo-labels, as in Distil-Whisper (Gandhi et al. 2023, section 3.2).

Shapes: B batch, T samples, L label tokens, N frames, V vocabulary.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from rkd.data.batches import Labels, pad_labels
from rkd.data.store import Store
from rkd.errors import DataError
from rkd.metrics import word_errors
from rkd.tokenizer import TIMESTAMP, Tokenizer, decode, decode_timed, encode_all, pieces_of, untimed


@dataclass(frozen=True)
class Transcript:
    """What a teacher wrote of an utterance.

    Attributes:
        text: normalised as the corpus is; empty where it heard nothing.
        confidence: see `confidences`.
        timed: the same with times, ``<|0.00|> hello there<|1.20|>``; None where they were not asked for.
    """

    text: str
    confidence: float
    timed: str | None = None

    def normalised(self, normalise: Callable[[str], str]) -> Transcript:
        """Return the transcript with its texts, but not its timestamps, normalised."""
        timed = self.timed
        if timed is not None:
            timed = "".join(p if TIMESTAMP.fullmatch(p) else f" {normalise(p)}" for p in pieces_of(timed))
        return replace(self, text=normalise(self.text), timed=timed)


def transcribe(
    model: Any, waveform_BT: Tensor, lengths_B: Tensor, beams: int, timestamps: bool = False
) -> list[Transcript]:
    """Return what a recogniser writes of clips ``(B, T)``, not normalised, and how sure it is of it.

    Args:
        beams: 1 is greedy.
        timestamps: ask for them, which Whisper can be.

    Raises:
        ConfigError: the model has no timestamps.
    """
    tokens = model.write(waveform_BT, lengths_B, beams, *([True] if timestamps else []))
    sure_B = confidences(model, waveform_BT, lengths_B, tokens)
    timed = [decode_timed(model.tokenizer, row) if timestamps else None for row in tokens]
    texts = [decode(model.tokenizer, row) if t is None else untimed(t) for row, t in zip(tokens, timed, strict=True)]
    return [Transcript(*each) for each in zip(texts, sure_B.tolist(), timed, strict=True)]


@torch.no_grad()
def confidences(model: Any, waveform_BT: Tensor, lengths_B: Tensor, tokens: list[list[int]]) -> Tensor:
    """Return the log-probability that a model gives each of its own transcripts, per token; shape ``(B,)``, at most 0.

    The end of text counts as a token. Of a decoder it is the mean over the tokens, each given those before it
    (Whisper's ``avg_logprob``, Radford et al. 2022, section 4.5). Of a CTC model it is the probability of the labels
    summed over all their alignments (Graves et al. 2006), so that frames that differ in when a label begins count for
    nothing.

    Args:
        tokens: what the model wrote of each clip, see `Recogniser.write`.
    """
    labels_BL = pad_labels(tokens).to(waveform_BT.device)
    n_labels_B = (labels_BL >= 0).sum(1)
    streams = model(waveform_BT, lengths_B, labels_BL)
    if "logits" in streams:
        logits_BVL = streams["logits"].values_BND.float().transpose(1, 2)
        losses_BL = F.cross_entropy(logits_BVL, labels_BL, ignore_index=-100, reduction="none")
        return -losses_BL.sum(1) / n_labels_B
    stream = streams["ctc_logits"]
    log_probs_NBV = stream.values_BND.float().log_softmax(-1).transpose(0, 1)
    # One label more than there are, since no clip may have said anything.
    labels_BL = F.pad(labels_BL.clamp(min=0), (0, 1))
    blank = model.tokenizer.pad_token_id
    losses_B = F.ctc_loss(log_probs_NBV, labels_BL, stream.lengths_B, n_labels_B, blank=blank, reduction="none")
    return -losses_B / (n_labels_B + 1)


def texts_of(store: Store, transcripts: Mapping[str, Transcript] | None) -> Iterator[str | None]:
    """Yield what is written of each utterance: its text, or a transcript, of which some may be missing."""
    if transcripts is None:
        yield from (text or "" for text in store.texts)
    else:
        yield from (transcripts[name].text if name in transcripts else None for name in store.ids)


def labels_of(store: Store, transcripts: Mapping[str, Transcript] | None, tokenizer: Tokenizer) -> Labels:
    """Return the label tokens of what is written of each utterance."""
    tokens = encode_all(tokenizer, (text for text in texts_of(store, transcripts) if text is not None))
    return Labels(None if text is None else next(tokens) for text in texts_of(store, transcripts))


def texts_before(ids: Sequence[str], speakers: Sequence[str | None], texts: Mapping[str, str]) -> dict[str, str]:
    """Return by utterance id what its speaker said in the utterance before it, of those that follow one of theirs.

    Args:
        ids: in the corpus's order; an utterance at another speed, ``x#sp0.9``, follows what ``x`` follows.
        speakers: of the utterances; of one that is not labelled nothing is known.
        texts: by id; of some it may be missing.
    """
    before: dict[str, str] = {}
    last: tuple[str, str | None] | None = None
    for name, speaker in zip(ids, speakers, strict=True):
        if "#" in name:
            continue
        if last and speaker is not None and last[1] == speaker and texts.get(last[0]):
            before[name] = texts[last[0]]
        last = name, speaker
    origin = {name: name.partition("#")[0] for name in ids}
    return {name: before[first] for name, first in origin.items() if first in before}


class Writer:
    """Appends transcripts to a file of a folder, a line each.

    Args:
        folder: gets ``transcripts-<rank>.jsonl``; whole lines that are there stay.
        rank: of this process among those that write.
    """

    def __init__(self, folder: Path, rank: int = 0):
        path = folder / f"transcripts-{rank}.jsonl"
        if path.exists():  # a kill can leave half a line
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, transcripts: Mapping[str, Transcript]) -> None:
        """Write transcripts of utterances by their ids."""
        for name, transcript in transcripts.items():
            self._file.write(json.dumps({"id": name, **asdict(transcript)}) + "\n")
        self._file.flush()


def load(folder: Path) -> dict[str, Transcript]:
    """Read what writers have written so far, by the ids of the utterances."""
    found = {}
    for path in sorted(folder.glob("transcripts-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                node = json.loads(line)
                name = node.pop("id")
                found[name] = Transcript(**node)
    return found


# --- which are left out ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A transcript, and what is known of its utterance: its length, and its word error rate (see `wer`)."""

    transcript: Transcript
    seconds: float
    wer: float


def wer(reference: str, text: str) -> float:
    """Return word errors over the reference's words; 0 where there is none, that is, nothing known."""
    errors = word_errors(reference, text)
    return errors.total / errors.n_reference if errors.n_reference else 0.0


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes a text; Whisper takes more than 2.4 for a decoder that loops.

    Radford et al. 2022, section 4.5, where it is the gzip compression rate, in bytes of UTF-8.
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))


# By the names of `transcripts.*`: whether an utterance breaks a limit.
FILTERS: dict[str, Callable[[Heard, float], bool]] = {
    "max_wer": lambda heard, limit: heard.wer > limit,
    "min_confidence": lambda heard, limit: heard.transcript.confidence < limit,
    "max_compression": lambda heard, limit: compression_ratio(heard.transcript.text) > limit,
    "max_characters_per_second": lambda heard, limit: len(heard.transcript.text) > limit * heard.seconds,
    "min_words": lambda heard, limit: len(heard.transcript.text.split()) < limit,
}


def broken(heard: Heard, limits: Mapping[str, float | None]) -> list[str]:
    """Return the names of the limits that an utterance breaks; a limit of None is off."""
    on = {name: limit for name, limit in limits.items() if limit is not None}
    return [name for name, limit in on.items() if FILTERS[name](heard, limit)]


def select(utterances: Mapping[str, Heard], limits: Mapping[str, float | None]) -> tuple[list[str], Counter[str]]:
    """Return the ids of the utterances that break no limit, and how many break each of those that are on.

    Raises:
        DataError: none is left; with what to set.
    """
    counts: Counter[str] = Counter({name: 0 for name, limit in limits.items() if limit is not None})
    kept = []
    for name, heard in utterances.items():
        failed = broken(heard, limits)
        counts.update(failed)
        if not failed:
            kept.append(name)
    if utterances and not kept:
        [(worst, _)] = counts.most_common(1)
        how = "raise" if worst.startswith("max") else "lower"
        raise DataError(
            f"none of the {len(utterances)} training utterances is left: {told(counts)}; {how} "
            f"transcripts.{worst}={limits[worst]:g}, or set it to null"
        )
    return kept, counts


def told(counts: Mapping[str, int]) -> str:
    """Return how many utterances break each limit, as people read it."""
    return ", ".join(f"{name} {n}" for name, n in counts.items())
