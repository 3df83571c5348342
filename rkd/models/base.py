"""What a recogniser is: waveforms in, named streams and transcripts out.

Shapes: B batch, T samples, N steps of a stream, D its width, L label tokens, P tokens of the text before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rkd.errors import ConfigError
from rkd.masks import valid_mask


@dataclass
class Stream:
    """One named output of a model, with its lengths and its time step.

    Attributes:
        values_BND: the values; what lies beyond ``lengths_B`` is undefined.
        lengths_B: valid steps of each clip.
        stride: samples between two steps, or None where the steps are label tokens.
    """

    values_BND: Tensor
    lengths_B: Tensor
    stride: int | None

    @property
    def n_steps(self) -> int:
        """Steps, padding too."""
        return self.values_BND.shape[1]

    def mask(self) -> Tensor:
        """Return True where a step is valid; shape ``(B, N)``."""
        return valid_mask(self.lengths_B, self.n_steps)

    def rows(self, valid_BN: Tensor) -> Any:
        """Return what stands at some steps, clip after clip, for `project`."""
        return self.values_BND[valid_BN]

    def project(self, rows: Any) -> Any:
        """Return the values of some of those rows, which a stream may have to make first."""
        return rows

    @property
    def n_outputs(self) -> int:
        """D."""
        return self.values_BND.shape[2]

    def each(self, change: Callable[[Tensor], Tensor]) -> Stream:
        """Return the stream with all its tensors changed, such as moved to a device."""
        return Stream(change(self.values_BND), change(self.lengths_B), self.stride)

    def where(self, kept_B: Tensor) -> Stream:
        """Return the stream without valid steps in the other clips."""
        return self.within(self.lengths_B * kept_B)

    def until(self, samples_B: Tensor) -> Stream:
        """Return the stream without the steps that stand beyond a sample of each clip; tokens stand at none."""
        if self.stride is None:
            return self
        return self.within(torch.minimum(self.lengths_B, -(-samples_B // self.stride)))

    def within(self, lengths_B: Tensor) -> Stream:
        """Return the stream with other lengths."""
        return replace(self, lengths_B=lengths_B)


class Projected(Stream):
    """Logits that are computed where they are asked for: what the output layer is given, and the layer.

    Over a vocabulary of 50,000 tokens the logits of a batch are its largest tensor by far, and most of them are of the
    prompt and of padding.

    Made without gradients, it gives its logits without, whenever they are asked for.

    Args:
        hidden_BND: what the output layer is given.
        layer: the output layer.
        n_outputs: of the layer.
        lengths_B: valid tokens of each clip.
    """

    def __init__(self, hidden_BND: Tensor, layer: Callable[[Tensor], Tensor], n_outputs: int, lengths_B: Tensor):
        self.hidden_BND, self.layer, self._n_outputs = hidden_BND, layer, n_outputs
        self.lengths_B, self.stride = lengths_B, None
        self.learns = torch.is_grad_enabled()

    def rows(self, valid_BN: Tensor) -> Tensor:
        return self.hidden_BND[valid_BN]

    def project(self, rows: Tensor) -> Tensor:
        """Return the logits of rows of what the output layer is given; ``(..., V)``."""
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            return self.layer(rows)

    @property
    def n_outputs(self) -> int:
        return self._n_outputs

    @cached_property
    def values_BND(self) -> Tensor:  # type: ignore[override]
        """All of them, padding too."""
        return self.project(self.hidden_BND)

    @property
    def n_steps(self) -> int:
        return self.hidden_BND.shape[1]

    def within(self, lengths_B: Tensor) -> Projected:
        kept = copy(self)
        kept.lengths_B = lengths_B
        return kept


Streams = dict[str, Stream]


class Recogniser(Protocol):
    """A speech recogniser of any family; each is an ``nn.Module`` besides.

    What some configurations ask for besides:

    - attention maps (the family's YAML names ``attention.<part>`` among what it provides): ``stride`` (of its encoder,
      in samples), and ``provide_attention(part)``, after which the streams ``attention.<part>.<layer>`` are given;
    - ``student.init=teacher``: ``start_from(teacher, encoder_from, decoder_from)``, which copies weights;
    - ``loss.on_policy``: ``sample(waveform_BT, lengths_B, temperature, seeds)``, which is `write` by chance;
    - ``transcripts.text_before``: ``told(text)``, as ``before_BP`` has it, and of ``transcripts.timestamps``: a last
      argument of `write`;
    - adapters: ``fresh``, patterns of weights that are new, and are trained whole.
    """

    tokenizer: Any
    shape: dict[str, Any]  # what makes another of the kind; lies in rkd.json
    window_seconds: int
    depth: dict[str, int]  # layers of each part, e.g. {"encoder": 3, "decoder": 1}
    width: int

    def __call__(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams: ...

    def transcribe(self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1) -> list[str]: ...

    def write(self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1) -> list[list[int]]: ...  # as label tokens

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Recogniser: ...  # what save wrote; card is its rkd.json


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights in a model, each shared weight once, fixed tables left out."""
    return sum(p.numel() for p in model.parameters())


def evenly_spaced(n_from: int, n_to: int) -> list[int]:
    """Return ``n_to`` of ``n_from`` layers, evenly spaced, the first and the last among them (Distil-Whisper)."""
    if n_to == 1:
        return [n_from - 1]
    return [round(i * (n_from - 1) / (n_to - 1)) for i in range(n_to)]


def copy_layers(source: nn.ModuleList, target: nn.ModuleList, chosen: list[int]) -> None:
    """Load the chosen layers of one stack into the layers of another of the same width."""
    for layer, index in zip(target, chosen, strict=True):
        layer.load_state_dict(source[index].state_dict())


def check_same_family(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse to copy weights between models of different classes.

    Raises:
        ConfigError: naming both.
    """
    if type(student) is not type(teacher):
        raise ConfigError(
            f"student.init=teacher needs models of one family: the teacher is a {type(teacher).__name__}, "
            f"the student a {type(student).__name__}"
        )


def check_same_width(student: Mapping[str, float], teacher: Mapping[str, float]) -> None:
    """Refuse to copy weights between shapes that differ in more than the number of layers.

    Raises:
        ConfigError: naming the first key that differs.
    """
    for key, value in student.items():
        if not key.endswith("_layers") and key != "dropout" and teacher.get(key) != value:
            raise ConfigError(
                f"student.init=teacher needs equal widths, but {key} is {value} in the student and {teacher.get(key)} "
                f"in the teacher; set student.{key}={teacher.get(key)}"
            )


def check_layers(key: str, chosen: list[int] | None, n_from: int, n_to: int) -> list[int]:
    """Return the teacher layers to copy, after a check that there are as many as the student has."""
    if chosen is None:
        if n_to > n_from:
            raise ConfigError(
                f"the student has {n_to} layers and the teacher {n_from}; name the layers to copy with {key}"
            )
        return evenly_spaced(n_from, n_to)
    if len(chosen) != n_to or not all(0 <= i < n_from for i in chosen):
        raise ConfigError(f"{key}={list(chosen)}: expected {n_to} layer numbers from 0 to {n_from - 1}")
    return list(chosen)
