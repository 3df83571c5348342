"""Random draws that belong to a sample.

Every draw is a hash of (seed, epoch, sample id, purpose), so a sample meets the same noise whatever batch, worker or
rank it falls into, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Mix uint64 values into uniformly distributed uint64 values (Steele, Lea & Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash64(text: str) -> int:
    """Return a 64-bit hash of a text that is the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return (hash64(text) >> 11) / 2**53


class Draws:
    """The random numbers of a batch of samples, addressed by purpose.

    Args:
        seed: seed of the run.
        epoch: pass over the corpus; evaluation uses epoch 0.
        ids_B: 64-bit sample ids (``hash64`` of the utterance id).
    """

    def __init__(self, seed: int, epoch: int, ids_B: Sequence[int] | np.ndarray):
        self.seed = seed
        self.epoch = epoch
        self.ids_B = np.asarray(ids_B, dtype=np.uint64)
        run = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
        run = splitmix64(run ^ np.uint64(epoch))
        self._keys_B = splitmix64(self.ids_B ^ run)

    def __len__(self) -> int:
        return len(self.ids_B)

    def uniform(self, purpose: str) -> np.ndarray:
        """Return a float64 in [0, 1) for each sample, independent between purposes; shape ``(B,)``."""
        bits_B = splitmix64(self._keys_B ^ np.uint64(hash64(purpose)))
        return (bits_B >> np.uint64(11)) / 2.0**53

    def uniforms(self, purpose: str, n: int) -> np.ndarray:
        """Return n floats in [0, 1) for each sample, the first ones the same for any larger n; shape ``(B, n)``."""
        keys_B1 = splitmix64(self._keys_B ^ np.uint64(hash64(purpose)))[:, None]
        return (splitmix64(keys_B1 ^ np.arange(n, dtype=np.uint64)) >> np.uint64(11)) / 2.0**53

    def below(self, purpose: str, high_B: np.ndarray | int) -> np.ndarray:
        """Return an int64 in [0, high) for each sample; ``high`` is a number or one number a sample."""
        return (self.uniform(purpose) * high_B).astype(np.int64)

    def choice(self, purpose: str, weights: Sequence[float]) -> np.ndarray:
        """Return an index into ``weights`` for each sample, drawn in proportion to the weights."""
        edges = np.cumsum(np.asarray(weights, dtype=np.float64))
        index = np.searchsorted(edges, self.uniform(purpose) * edges[-1], side="right")
        return np.minimum(index, len(edges) - 1)

    def rows(self, index: np.ndarray) -> Draws:
        """Return the draws of some of the samples."""
        some = copy.copy(self)
        some.ids_B, some._keys_B = self.ids_B[index], self._keys_B[index]
        return some

    def within(self, name: str) -> Draws:
        """Return other draws of the same samples: those of somebody who does not know what purposes others have."""
        other = copy.copy(self)
        other._keys_B = splitmix64(self._keys_B ^ np.uint64(hash64(name)))
        return other
