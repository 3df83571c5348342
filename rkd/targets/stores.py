"""Finished folders of targets, as the utterances of a corpus ask for them.

Shapes: B batch, N steps, k kept logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkd.errors import DataError
from rkd.masks import valid_mask
from rkd.models.base import Stream, Streams
from rkd.targets.codebooks import decode
from rkd.targets.parts import BOOKS, CARD, open_part, read_told
from rkd.targets.rows import Card, unpack_largest
from rkd.targets.streams import DrawnRows, SomeLogits, SomeRows, TopRows
from rkd.tokenizer import load_tokenizer


class Targets:
    """A finished folder of one of a teacher's streams.

    Args:
        folder: of `Writer`, with ``card.json``.
        ids: of the store's utterances.

    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, ids: Sequence[str]):
        self.folder = folder
        self.card = read_card(folder)
        self._book_CKd = open_books(folder) if self.card.codebooks is not None else None
        self._parts: list[np.memmap] = []
        where: dict[str, tuple[int, int, int]] = {}
        for told in sorted(folder.glob("part-*.json")):
            rows, about = open_part(told), read_told(told)
            ends = np.cumsum(about["rows"])
            for name, n, end in zip(about["ids"], about["rows"], ends.tolist(), strict=True):
                where[name] = len(self._parts), end - n, end
            self._parts.append(rows)
        self._where = np.array([where.get(name, (-1, 0, 0)) for name in ids], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        # A reading process maps the parts itself.
        return {**vars(self), "_parts": [str(part.filename) for part in self._parts]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._parts = [np.load(path, mmap_mode="r") for path in state["_parts"]]

    @property
    def n_bytes(self) -> int:
        """On disk."""
        return sum(rows.nbytes for rows in self._parts)

    @property
    def n_rows(self) -> np.ndarray:
        """How many rows each utterance has; 0 where there are none."""
        return self._where[:, 2] - self._where[:, 1]

    def of(self, utterances: Iterable[int], n_tokens: int | None = None) -> Stream:
        """Return the stream of some utterances, padded together; of one that has no targets it has no steps.

        Args:
            n_tokens: N where a row is a label token; else it is what the longest has.
        """
        where = self._where[list(utterances)]
        longest = int((where[:, 2] - where[:, 1]).max())
        n = longest if n_tokens is None or self.card.stride is not None else n_tokens
        found = [self._parts[part][start : min(end, start + n)] for part, start, end in where]
        lengths_B = torch.tensor([len(rows) for rows in found])
        rows, valid_R = np.concatenate(found), valid_mask(lengths_B, n).flatten().nonzero()[:, 0]

        def padded(x: np.ndarray) -> Tensor:
            values = torch.from_numpy(x)
            return values.new_zeros(len(found) * n, x.shape[1]).index_copy(0, valid_R, values)

        if self._book_CKd is not None:
            values_RD = decode(torch.from_numpy(np.ascontiguousarray(rows["codes"])), self._book_CKd)
            return Stream(padded(values_RD.numpy()).view(len(found), n, -1), lengths_B, self.card.stride)
        if "values" in (rows.dtype.names or ()):
            values_BND = padded(np.ascontiguousarray(rows["values"])).view(len(found), n, -1)
            return Stream(values_BND, lengths_B, self.card.stride)
        some: SomeRows
        if "drawn" in (rows.dtype.names or ()):
            entropy_R1 = padded(rows["entropy"][:, None].copy())
            some = DrawnRows(padded(rows["drawn"].astype(np.int64)), entropy_R1[:, 0])
        else:
            index_Rk, logits_Rk, log_rest_RT = map(padded, unpack_largest(rows))
            some = TopRows(index_Rk, logits_Rk.float(), log_rest_RT, self.card.temperatures)
        return SomeLogits(some, n, lengths_B, self.card.stride)


def read_card(folder: Path) -> Card:
    """Read what the rows of a folder are.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return Card(**json.loads((folder / CARD).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder / CARD} is damaged ({error}); remove {folder}, and the same command makes it again"
        ) from error


def open_books(folder: Path) -> Tensor:
    """Read the centroids of a folder, ``(C, K, d)``.

    Raises:
        DataError: they are missing or damaged.
    """
    try:
        return torch.from_numpy(np.load(folder / BOOKS))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{folder / BOOKS} is damaged ({error}); remove {folder}, and the same command makes it again"
        ) from error


class StoredTeacher:
    """What students ask of a teacher whose outputs are stored: all but the model.

    Args:
        folder: what `describe` wrote.

    Attributes:
        tokenizer, depth, width, window_seconds: as of `rkd.models.base.Recogniser`.
        stride: samples between two steps of its encoder; None where the family does not say.
        shape: its language, where it has one.
        outputs: the streams that are stored.

    Raises:
        DataError: the folder is damaged.
    """

    def __init__(self, folder: Path):
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        try:
            about = json.loads((folder / "teacher.json").read_text())
            self.depth, self.width, self.window_seconds = about["depth"], about["width"], about["window_seconds"]
            self.stride = about["stride"]
            self.shape = {"language": about["language"]} if about["language"] else {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder / 'teacher.json'} is damaged ({error}); remove {folder}, and the same command makes it again"
            ) from error
        self.outputs: list[Targets] = []

    def read(self, folders: Mapping[str, Path], ids: Sequence[str], labels: Sequence[Sequence[int] | None]) -> None:
        """Open the folders of its streams.

        Args:
            ids: of the store's utterances.
            labels: of those that a student is trained on; None for the others.

        Raises:
            DataError: a part is damaged, or what is stored is of other labels.
        """
        self.outputs = [Targets(folder, ids) for folder in folders.values()]
        for targets in self.outputs:
            for own, n in zip(labels, targets.n_rows.tolist(), strict=True):
                if targets.card.stride is None and own is not None and len(own) != n:
                    raise DataError(
                        f"the targets in {targets.folder} are of other labels; remove the folder, and the same command "
                        "makes them again"
                    )

    def streams(self, utterances: Sequence[int] | np.ndarray, n_tokens: int) -> Streams:
        """Return the streams of utterances whose labels are padded to so many tokens."""
        return {targets.card.stream: targets.of(utterances, n_tokens) for targets in self.outputs}


def describe(teacher: Any, folder: Path) -> None:
    """Write what students ask of a teacher besides its outputs."""
    teacher.tokenizer.save_pretrained(folder / "tokenizer")
    about = {
        "depth": teacher.depth, "width": teacher.width, "window_seconds": teacher.window_seconds,
        "stride": getattr(teacher, "stride", None), "language": teacher.shape.get("language"),
    }  # fmt: skip
    (folder / "teacher.json").write_text(json.dumps(about, indent=2) + "\n")
