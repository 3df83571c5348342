"""Which weights a training changes: all, parts by pattern, layers from the top down, or low-rank adapters.

A pattern is one or more components of a parameter's name, with wildcards: ``encoder``, ``encoder.layers.[0-3]``,
``embed_tokens``, ``bias``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from rkd.errors import ConfigError
from rkd.phases import Phase

LAYER = re.compile(r"(?:^|\.)(?:(decoder)|encoder)\.layers\.(\d+)\.")
# What stands before the first layer of an encoder, in any family, and the denoiser in front of it.
FRONT = {"denoiser", "mixing", "conv1", "conv2", "feature_extractor", "feature_projection", "pos_conv_embed",
         "masked_spec_embed"}  # fmt: skip


def matching(names: Iterable[str], patterns: Sequence[str], key: str) -> set[str]:
    """Return the parameter names that any of the patterns fits.

    Raises:
        ConfigError: a pattern fits none.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        fits = {name for name in names if _fits(name, pattern)}
        if not fits:
            parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
            raise ConfigError(f"{key}=[{pattern}] fits no weights of the model; parts of their names are "
                              f"{', '.join(parts)}")  # fmt: skip
        found |= fits
    return found


def _fits(name: str, pattern: str) -> bool:
    parts, n = name.split("."), pattern.count(".") + 1
    return any(fnmatchcase(".".join(parts[i : i + n]), pattern) for i in range(len(parts) - n + 1))


def heights(names: Iterable[str]) -> dict[str, int]:
    """Return how high in the model each weight stands: 0 before the encoder, its layers, the decoder's, and the head.

    Output layers, final norms, embeddings that are the output layer too, and whatever else is in no layer stand at the
    top.
    """
    names = list(names)
    layers = {name: (bool(m[1]), int(m[2])) for name in names if (m := LAYER.search(name))}
    n_encoder = 1 + max((i for is_decoder, i in layers.values() if not is_decoder), default=-1)
    top = n_encoder + 2 + max((i for is_decoder, i in layers.values() if is_decoder), default=-1)
    found = {}
    for name in names:
        if name in layers:
            is_decoder, i = layers[name]
            found[name] = 1 + i + (n_encoder if is_decoder else 0)
        else:
            found[name] = 0 if FRONT & set(name.split(".")) else top
    return found


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the optimizer's groups.

    Matrices decay, biases and norms do not (as in GPT-2 and Whisper). Each layer learns at ``layer_decay`` times the
    rate of the one above it (ELECTRA, Clark et al. 2020, section 3.1); ``rate`` of a group is its share of the learning
    rate.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    height = heights(trained)
    top = max(height.values(), default=0)
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, p in trained.items():
        key = (weight_decay if p.ndim > 1 else 0.0, layer_decay ** (top - height[name]))
        groups.setdefault(key, []).append(p)
    return [{"params": p, "weight_decay": decay, "rate": rate} for (decay, rate), p in groups.items()]


def unfrozen(names: Iterable[str], layers: int) -> set[str]:
    """Return the weights of the top of the model and of so many layers below it (ULMFiT, Howard & Ruder 2018)."""
    height = heights(names)
    top = max(height.values(), default=0)
    return {name for name, h in height.items() if h >= top - layers}


class Trained:
    """Which of a student's weights a step changes; a pure function of the step, so that a resume needs no memory.

    What no phase trains is frozen for good; what the loss terms learn for themselves is always trained.

    Raises:
        ConfigError: a pattern fits no weight, or a phase trains none.
    """

    def __init__(self, student: nn.Module, phases: Sequence[Phase], unfreeze_every: int | None):
        own = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.own = set(own)
        self.unfreeze_every = unfreeze_every
        self.names: dict[int, set[str]] = {}  # by the phase's first step
        for phase in phases:
            names = set(own) if phase.train == "all" else matching(own, list(phase.train), "trainer.train")
            names -= matching(own, phase.freeze, "trainer.freeze")
            if not names:
                raise ConfigError("trainer.train and trainer.freeze leave no weights to train")
            self.names[phase.start] = names
        for name in set(own).difference(*self.names.values()):
            own[name].requires_grad_(False)

    def at(self, student: nn.Module, step: int, phase: Phase) -> None:
        """Freeze and unfreeze weights of the student, or of a copy, for a step."""
        names = self.names[phase.start]
        if self.unfreeze_every:
            names = names & unfrozen(self.own, (step - phase.start) // self.unfreeze_every)
        for name, p in student.named_parameters():
            if name in self.own:
                p.requires_grad_(name in names)


def attach_adapters(model: nn.Module, adapters: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
    """Put low-rank adapters (LoRA, Hu et al. 2022) beside layers, freeze the rest, and return PEFT's handle.

    Args:
        adapters: ``rank``, ``alpha``, ``dropout``, ``targets``: last parts of names of linear layers or convolutions.
        also: names of weights that are trained as they are, such as a fresh output layer.

    Raises:
        ConfigError: no such layer has one of the names.
    """
    from peft import LoraConfig, LoraModel

    able = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d)}
    if not able & set(adapters["targets"]):
        raise ConfigError(f"trainer.adapters.targets={list(adapters['targets'])} are no linear layers or "
                          f"convolutions of the model; there are {', '.join(sorted(able))}")  # fmt: skip
    config = LoraConfig(
        r=adapters["rank"], lora_alpha=adapters["alpha"], lora_dropout=adapters["dropout"],
        target_modules=list(adapters["targets"]),
    )  # fmt: skip
    handle = LoraModel(model, config, "default")
    for name, p in model.named_parameters():
        if name.endswith(tuple(also)) and also:
            p.requires_grad_(True)
    return handle
