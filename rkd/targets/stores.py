"""Finished folders of targets, as the utterances of a corpus ask for them.

Shapes: B batch, N steps, k kept logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkd.errors import ConfigError, DataError
from rkd.models.base import Stream
from rkd.targets.parts import open_part
from rkd.targets.rows import unpack
from rkd.targets.streams import TopK, TopRows
from rkd.tokenizer import Tokenizer, difference, load_tokenizer


@dataclass(frozen=True)
class Card:
    """What students ask of a teacher besides its outputs, and how these are stored.

    Attributes:
        stream: ``logits`` or ``ctc_logits``.
        stride: samples between two rows; None: a row is a label token.
        n_outputs: of a row.
        k, temperatures: see `pack`.
        shape: the teacher's depth, width, window in seconds, and language.
    """

    stream: str
    stride: int | None
    n_outputs: int
    k: int
    temperatures: list[float]
    shape: dict[str, Any]


class Targets:
    """A finished folder of targets, as the utterances of a store ask for them.

    Args:
        folder: of `Writer`, with ``card.json``.
        ids: of the store's utterances.

    Raises:
        DataError: a part is missing or damaged.
    """

    def __init__(self, folder: Path, ids: Sequence[str]):
        self.card = Card(**json.loads((folder / "card.json").read_text()))
        self._parts: list[np.ndarray] = []
        where: dict[str, tuple[int, int, int]] = {}
        for told in sorted(folder.glob("part-*.json")):
            rows = open_part(told)
            about = json.loads(told.read_text())
            ends = np.cumsum(about["rows"])
            for name, n, end in zip(about["ids"], about["rows"], ends.tolist(), strict=True):
                where[name] = len(self._parts), end - n, end
            self._parts.append(rows)
        self._where = np.array([where.get(name, (-1, 0, 0)) for name in ids], dtype=np.int64)

    @property
    def n_rows(self) -> np.ndarray:
        """How many rows each utterance has; 0 where there are none."""
        return self._where[:, 2] - self._where[:, 1]

    def streams(self, utterances: Iterable[int], n_tokens: int) -> dict[str, Stream]:
        """Return the teacher's streams of utterances whose labels are padded to so many tokens."""
        return {self.card.stream: self.of(utterances, n_tokens if self.card.stride is None else None)}

    def of(self, utterances: Iterable[int], n_steps: int | None = None) -> Stream:
        """Return the stream of some utterances, padded together; of one that has no targets it has no steps.

        Args:
            n_steps: N; None: as many as the longest has.
        """
        where = self._where[list(utterances)]
        n = int((where[:, 2] - where[:, 1]).max()) if n_steps is None else n_steps
        found = [self._parts[part][start : min(end, start + n)] for part, start, end in where]
        lengths_B = torch.tensor([len(rows) for rows in found])
        padded = np.zeros((len(found), n), self._parts[0].dtype)
        for row, rows in zip(padded, found, strict=True):
            row[: len(rows)] = rows
        if "logits" in (padded.dtype.names or ()):
            return Stream(torch.from_numpy(padded["logits"].astype(np.float32)), lengths_B, self.card.stride)
        rows = np.concatenate(found)
        index, logits, rest = (torch.from_numpy(x) for x in unpack(rows))
        at = valid_numbers(lengths_B, n)
        filled = [x.new_zeros(len(found) * n, x.shape[1]).index_copy(0, at, x) for x in (index, logits, rest)]
        return TopK(TopRows(filled[0], filled[1].float(), filled[2], self.card.temperatures), n, lengths_B)


def valid_numbers(lengths_B: Tensor, n: int) -> Tensor:
    """Return the numbers of the valid steps among all of ``(B, N)``, one clip after the other."""
    return (torch.arange(n)[None] < lengths_B[:, None]).flatten().nonzero()[:, 0]


class StoredTeacher:
    """What students ask of a teacher whose outputs are stored: all but the model.

    Args:
        folder: of the targets.
        ids: of the store's utterances.

    Raises:
        DataError: the targets are damaged.
    """

    def __init__(self, folder: Path, ids: list[str]):
        self.targets = Targets(folder, ids)
        shape = self.targets.card.shape
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.depth, self.width, self.window_seconds = shape["depth"], shape["width"], shape["window_seconds"]
        self.shape = {"language": shape["language"]} if shape["language"] else {}
        self.folder = folder

    def check(self, labels: Sequence[Sequence[int] | None], tokenizer: Tokenizer) -> None:
        """Refuse a student of another vocabulary, and targets of other labels than those of the store's utterances.

        Raises:
            ConfigError: tokens that are numbered differently, of which only the largest logits are known.
            DataError: other labels.
        """
        card = self.targets.card
        if card.k < card.n_outputs and (how := difference(self.tokenizer, tokenizer)):
            raise ConfigError(
                f"of a teacher of another vocabulary ({how}) all logits are needed; set targets.live=true"
            )
        if card.stride is not None:
            return
        for own, n in zip(labels, self.targets.n_rows.tolist(), strict=True):
            if own is not None and len(own) != n:
                raise DataError(f"the targets in {self.folder} are of other labels; remove the folder, and the same "
                                "command makes them again")  # fmt: skip
