"""A teacher's outputs, computed once and read back by every student, seed and noise that follows.

Of a row of logits (a token, a frame) the k largest are kept, with what all others weigh at several temperatures: the
mass that the largest miss at T = 1 says nothing about T = 2. Of a vocabulary of no more than k all are kept.

A folder of targets holds ``part-*.npy``, rows of fixed size that are memory-mapped, and beside each ``part-*.json``:
which utterances it has, in order, how many rows each, and a checksum. A part counts once its JSON file is there, so
that any number of processes can write, and an interrupted one goes on with what is missing.

Shapes: R rows, B batch, N steps, V vocabulary, k kept logits, T temperatures.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkd.errors import ConfigError, DataError
from rkd.models.base import Stream
from rkd.tokenizer import Tokenizer, difference, load_tokenizer

LEVELS = 2**12 - 1  # a kept logit is 12 bits: its distance below the row's largest, in steps of the row's own size
PART_BYTES = 2**25
ROWS = 256  # of logits at a time

# --- a row on disk ---------------------------------------------------------------------------------------------------


def row_type(n_outputs: int, k: int, n_temperatures: int) -> np.dtype:
    """Return how a row lies on disk: 382 bytes for k = 128 of Whisper's 51,865 tokens at three temperatures."""
    if k >= n_outputs:
        return np.dtype([("logits", "<f2", (n_outputs,))])
    return np.dtype([
        ("largest", "<f4"), ("step", "<f4"), ("log_rest", "<f4", (n_temperatures,)),
        # Which tokens, in order (Elias 1974, Fano 1971): the lower byte of each, and the rest of the number in unary.
        ("low", "u1", (k,)), ("high", "u1", (-(-(k + (n_outputs >> 8)) // 8),)),
        ("below", "u1", (3 * k // 2,)),
    ])  # fmt: skip


def pack(logits_RV: Tensor, k: int, temperatures: Sequence[float]) -> np.ndarray:
    """Return rows of logits as they lie on disk.

    Args:
        k: even.
        temperatures: at which the rest's weight is kept.
    """
    kind = row_type(logits_RV.shape[1], k, len(temperatures))
    rows = np.empty(len(logits_RV), kind)
    if "logits" in (kind.names or ()):
        rows["logits"] = logits_RV.float().cpu().numpy()
        return rows
    logits_RV = logits_RV.float()
    index_Rk = logits_RV.topk(k, dim=-1).indices.sort(-1).values
    kept_Rk = logits_RV.gather(-1, index_Rk)
    others_RV = logits_RV.scatter(-1, index_Rk, -torch.inf)
    largest_R1 = kept_Rk.amax(-1, keepdim=True)
    step_R1 = ((largest_R1 - kept_Rk.amin(-1, keepdim=True)) / LEVELS).clamp(min=1e-12)
    below_Rk = ((largest_R1 - kept_Rk) / step_R1).round().int().cpu().numpy()
    rows["largest"], rows["step"] = largest_R1[:, 0].cpu().numpy(), step_R1[:, 0].cpu().numpy()
    rest = [(others_RV / t).logsumexp(-1) - (logits_RV / t).logsumexp(-1) for t in temperatures]
    rows["log_rest"] = torch.stack(rest, -1).cpu().numpy()
    index = index_Rk.cpu().numpy()
    rows["low"] = index & 255
    ones = np.zeros((len(rows), 8 * rows["high"].shape[1]), np.uint8)
    np.put_along_axis(ones, (index >> 8) + np.arange(k), 1, axis=1)
    rows["high"] = np.packbits(ones, axis=1)
    even, odd = below_Rk[:, ::2], below_Rk[:, 1::2]
    rows["below"] = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).reshape(len(rows), -1)
    return rows


def stored_rows(stream: Stream, k: int, temperatures: Sequence[float]) -> tuple[int, np.ndarray]:
    """Return the size of the vocabulary, and the valid rows of a stream as they lie on disk, clip after clip."""
    parts = stream.rows(stream.mask()).split(ROWS)
    return stream.n_outputs, np.concatenate([pack(stream.project(part), k, temperatures) for part in parts])


def unpack(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which tokens were kept ``(R, k)``, their logits ``(R, k)``, and the log-weights of the rest ``(R, T)``."""
    k = rows["low"].shape[1]
    ones = np.nonzero(np.unpackbits(rows["high"], axis=1))[1].reshape(len(rows), k)
    index_Rk = ((ones - np.arange(k)) << 8) + rows["low"]
    a, b, c = np.moveaxis(rows["below"].reshape(len(rows), k // 2, 3).astype(np.int32), -1, 0)
    below_Rk = np.stack([a << 4 | b >> 4, (b & 15) << 8 | c], -1).reshape(len(rows), k)
    return index_Rk, rows["largest"][:, None] - below_Rk * rows["step"][:, None], rows["log_rest"].copy()


# --- parts -----------------------------------------------------------------------------------------------------------


class Writer:
    """Writes parts of a folder of targets.

    Args:
        folder: gets ``part-<prefix><number>``; what is there stays.
        prefix: of this process.
    """

    def __init__(self, folder: Path, prefix: str = ""):
        self.folder, self.prefix = folder, prefix
        self._ids: list[str] = []
        self._rows: list[np.ndarray] = []
        self._n_bytes = 0

    def add(self, name: str, rows: np.ndarray) -> None:
        """Append the rows of an utterance."""
        self._ids.append(name)
        self._rows.append(rows)
        self._n_bytes += rows.nbytes
        if self._n_bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part as one."""
        if not self._ids:
            return
        number = sum(1 for _ in self.folder.glob(f"part-{self.prefix}*.json"))
        path = self.folder / f"part-{self.prefix}{number:05d}.npy"
        rows = np.concatenate(self._rows)
        np.save(path, rows)
        told = {"ids": self._ids, "rows": [len(r) for r in self._rows], "checksum": checksum(rows)}
        new = path.with_suffix(".json.new")
        new.write_text(json.dumps(told))
        new.replace(path.with_suffix(".json"))
        self._ids, self._rows, self._n_bytes = [], [], 0


def checksum(rows: np.ndarray) -> int:
    """Return the CRC-32 of rows."""
    return zlib.crc32(rows.view(np.uint8).data)


def written(folder: Path) -> set[str]:
    """Return the ids of the utterances whose targets are there."""
    return {name for part in folder.glob("part-*.json") for name in json.loads(part.read_text())["ids"]}


# --- read back -------------------------------------------------------------------------------------------------------


@dataclass
class TopRows:
    """What is known of a teacher's rows of logits: the largest, and what the others weigh.

    Attributes:
        index_Rk: which tokens are kept.
        logits_Rk: their logits.
        log_rest_RT: log-probability of all others together, at each temperature.
        temperatures: of ``log_rest_RT``.
    """

    index_Rk: Tensor
    logits_Rk: Tensor
    log_rest_RT: Tensor
    temperatures: Sequence[float]

    def __getitem__(self, part_R: slice | Tensor) -> TopRows:
        return replace(
            self, index_Rk=self.index_Rk[part_R], logits_Rk=self.logits_Rk[part_R], log_rest_RT=self.log_rest_RT[part_R]
        )

    def to(self, device: torch.device) -> TopRows:
        """Return the rows on a device."""
        index_Rk, logits_Rk = (x.to(device, non_blocking=True) for x in (self.index_Rk, self.logits_Rk))
        return TopRows(index_Rk, logits_Rk, self.log_rest_RT.to(device, non_blocking=True), self.temperatures)

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return those of the kept tokens and, last, of all others together; ``(R, k + 1)``.

        They sum to 1 whatever the rounding of the logits.
        """
        log_rest_R1 = self.log_rest_RT[:, [list(self.temperatures).index(temperature)]]
        log_kept_R1 = torch.log1p(-log_rest_R1.exp())
        return torch.cat([(self.logits_Rk / temperature).log_softmax(-1) + log_kept_R1, log_rest_R1], -1)


class TopK(Stream):
    """A stream of logits of which the largest are known.

    Args:
        rows: of all steps ``(B, N)``, padding too, one after the other.
        n_steps: N.
        lengths_B: valid steps of each clip.
    """

    def __init__(self, rows: TopRows, n_steps: int, lengths_B: Tensor):
        self.all_rows, self._n_steps, self.lengths_B, self.stride = rows, n_steps, lengths_B, None

    @property
    def n_steps(self) -> int:
        return self._n_steps

    def to(self, device: torch.device) -> TopK:
        return TopK(self.all_rows.to(device), self._n_steps, self.lengths_B.to(device))

    def rows(self, valid_BN: Tensor) -> TopRows:
        """Return the rows of some steps."""
        return self.all_rows[valid_BN.flatten()]


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


def open_part(told: Path) -> np.ndarray:
    """Map the rows that a part's JSON file tells of.

    Raises:
        DataError: they are not what was written.
    """
    path = told.with_suffix(".npy")
    try:
        rows = np.load(path, mmap_mode="r")
        whole = checksum(rows) == json.loads(told.read_text())["checksum"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove {told}, and the same command makes it again") from error
    if not whole:
        raise DataError(f"{path} is not what was written; remove {told}, and the same command makes it again")
    return rows


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
