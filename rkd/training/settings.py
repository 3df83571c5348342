"""What ``conf/trainer`` asks of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Settings:
    """How to train; the keys of ``conf/trainer``, where each is explained."""

    steps: int
    batch_seconds: float
    accumulate: int
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: float
    schedule: str
    clip_norm: float
    clean: float
    silence: float
    precision: str
    validate_every: int
    validate_utterances: int
    patience: int | None
    train: str | list[str]
    freeze: list[str]
    unfreeze_every: int | None
    layer_decay: float
    recompute: bool
    compile: bool
    shard: bool
    average: float | None
    adapters: dict[str, Any] | None
    phases: list[dict[str, Any]]
