"""A training in phases: which weights, noise, losses and learning rate each stretch of its steps has."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rkd.errors import ConfigError

# What a phase takes from ``conf/trainer`` where it has none of its own.
INHERITED = ("train", "freeze", "learning_rate", "warmup", "schedule", "clean")


@dataclass(frozen=True)
class Phase:
    """Steps ``start`` to ``end`` of a training, the end left out.

    Attributes:
        train, freeze, learning_rate, warmup, schedule, clean: as in ``conf/trainer``, for this phase alone.
        snr_db, snr_range_db: of the noise; both None for the training's own.
        weights: of loss terms by name; a term that is not named keeps its own.
    """

    start: int
    end: int
    train: str | list[str]
    freeze: list[str]
    learning_rate: float
    warmup: float
    schedule: str
    clean: float
    snr_db: list[float] | None
    snr_range_db: list[float] | None
    weights: dict[str, float]

    def hears_clean(self, step: int) -> bool:
        """Say whether a step is in the phase's share of clean speech."""
        return step - self.start < self.clean * (self.end - self.start)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then the schedule down to zero."""
        steps, done = self.end - self.start, step - self.start
        warmup = max(1, round(self.warmup * steps))
        if done < warmup:
            return self.learning_rate * (done + 1) / warmup
        progress = (done - warmup) / max(1, steps - warmup)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.schedule == "linear":
            return self.learning_rate * (1.0 - progress)
        return self.learning_rate


def phases_of(
    trainer: Mapping[str, Any], terms: Collection[str], off: Collection[str] = (), key: str = "trainer"
) -> list[Phase]:
    """Return the phases of a training in order; one where none are named.

    Args:
        trainer: the keys of ``conf/trainer``. The ``steps`` of a phase are a number or, below 1, a share of
            ``trainer.steps``; the last phase takes what is left.
        terms: names of the loss terms.
        off: names of terms that are off; a phase may say so, too, with the weight 0.
        key: where ``trainer`` stands in the configuration.

    Raises:
        ConfigError: the phases do not fill the steps, or weight a term that is not there.
    """
    total, nodes = trainer["steps"], trainer["phases"] or [{}]
    found: list[Phase] = []
    exact = 0.0
    for i, node in enumerate(nodes):
        last = i == len(nodes) - 1
        if "steps" not in node and not last:
            raise ConfigError(f"{key}.phases: phase {i + 1} has no steps; only the last one takes what is left")
        if exact >= total:
            raise ConfigError(f"{key}.phases: nothing of {key}.steps={total} is left for phase {i + 1}; those before "
                              f"it take {exact:g}")  # fmt: skip
        start, steps = round(exact), node.get("steps")
        if steps is None:
            exact = total
        else:
            exact += steps * total if steps < 1 else steps
        weights = {name: weight for name, weight in node.get("weights", {}).items() if weight or name not in off}
        if unknown := set(weights) - set(terms):
            raise ConfigError(f"{key}.phases: phase {i + 1} weights {min(unknown)}, which is not on; the loss has the "
                              f"terms {', '.join(terms)}")  # fmt: skip
        own = {name: node.get(name, trainer[name]) for name in INHERITED}
        found.append(
            Phase(start, round(exact), **own, snr_db=node.get("snr"), snr_range_db=node.get("snr_range"),
                  weights=weights)
        )  # fmt: skip
    if found[-1].end != total or any(phase.end <= phase.start for phase in found):
        steps = ", ".join(str(phase.end - phase.start) for phase in found)
        raise ConfigError(f"{key}.phases have {steps} of {key}.steps={total} steps: let them add up, or leave out the "
                          "steps of the last one")  # fmt: skip
    return found
