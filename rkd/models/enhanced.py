"""A recogniser of any family that wears a denoiser.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rkd.errors import CheckpointError
from rkd.masks import valid_mask
from rkd.models.base import Stream, Streams
from rkd.models.denoisers.base import Denoiser
from rkd.models.folders import RECOGNISER
from rkd.tokenizer import Tokenizer


class Enhanced(nn.Module):
    """A recogniser that hears a mixture of its input and of what a denoiser makes of it.

    Provides the recogniser's streams, and ``waveform``: the denoised signal ``(B, T, 1)``, before it is mixed. The
    recogniser's losses reach the denoiser through the features.

    Args:
        recogniser: of any family.
        denoiser: of any family.
        mixing: see ``Mixing``.
    """

    def __init__(self, recogniser: Any, denoiser: Denoiser, mixing: float | str):
        super().__init__()
        self.recogniser, self.denoiser, self.mixing = recogniser, denoiser, Mixing(mixing)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.recogniser.tokenizer

    @property
    def window_seconds(self) -> int:
        return self.recogniser.window_seconds

    @property
    def depth(self) -> dict[str, int]:
        return self.recogniser.depth

    @property
    def width(self) -> int:
        return self.recogniser.width

    @property
    def stride(self) -> int:
        return self.recogniser.stride

    @property
    def shape(self) -> dict[str, Any]:
        return self.recogniser.shape

    @property
    def fresh(self) -> tuple[str, ...]:
        """The weights that no pretrained model has: the denoiser's and the mixing's are among them."""
        own = (name for name, _ in self.named_parameters() if not name.startswith("recogniser."))
        return (*getattr(self.recogniser, "fresh", ()), *own)

    def provide_attention(self, part: str) -> None:
        """Give the recogniser's attention maps from now on."""
        self.recogniser.provide_attention(part)

    def denoise(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the denoiser makes of clips, and what the recogniser hears, both ``(B, T)``."""
        denoised_BT = self.denoiser(waveform_BT, lengths_B)
        return denoised_BT, self.mixing(denoised_BT, waveform_BT, lengths_B)

    def forward(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams:
        """Return the streams for clips ``(B, T)``; arguments as of the recogniser."""
        denoised_BT, heard_BT = self.denoise(waveform_BT, lengths_B)
        streams = self.recogniser(heard_BT, lengths_B, labels_BL, before_BP)
        return {**streams, "waveform": Stream(denoised_BT[..., None], lengths_B, 1)}

    @torch.no_grad()
    def transcribe(self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1) -> list[str]:
        """Return the transcripts of clips ``(B, T)``, as the recogniser writes them."""
        return self.recogniser.transcribe(self.denoise(waveform_BT, lengths_B)[1], lengths_B, beams)

    @torch.no_grad()
    def write(self, waveform_BT: Tensor, lengths_B: Tensor, *how: Any) -> list[list[int]]:
        """Return the label tokens of those transcripts; further arguments are the recogniser's."""
        return self.recogniser.write(self.denoise(waveform_BT, lengths_B)[1], lengths_B, *how)

    def told(self, text: str) -> list[int]:
        """Return how the recogniser is told of a text that was said before; see ``WhisperRecogniser.told``."""
        return self.recogniser.told(text)

    @torch.no_grad()
    def sample(
        self, waveform_BT: Tensor, lengths_B: Tensor, temperature: float, seeds_B: Sequence[int]
    ) -> list[list[int]]:
        """Return the label tokens of transcripts that are drawn; see ``WhisperRecogniser.sample``."""
        return self.recogniser.sample(self.denoise(waveform_BT, lengths_B)[1], lengths_B, temperature, seeds_B)

    def save(self, folder: Path) -> None:
        """Write ``recogniser``, as its family saves it, ``denoiser``, and what the mixing has learned."""
        (folder / RECOGNISER).mkdir(parents=True, exist_ok=True)
        self.recogniser.save(folder / RECOGNISER)
        self.denoiser.save(folder / "denoiser")
        save_file(self.mixing.state_dict(), folder / "mixing.safetensors")

    @classmethod
    def of_parts(cls, folder: Path, recogniser: Any, denoiser: Denoiser, mixing: float | str) -> Enhanced:
        """Put together what ``save`` wrote, of which recogniser and denoiser are loaded already.

        Raises:
            CheckpointError: what the mixing has learned is missing or damaged.
        """
        model = cls(recogniser, denoiser, mixing)
        try:
            model.mixing.load_state_dict(load_file(folder / "mixing.safetensors"))
        except Exception as error:
            raise CheckpointError(
                f"{folder / 'mixing.safetensors'} cannot be read ({error}); rebuild the model or name another folder"
            ) from error
        return model


class Mixing(nn.Module):
    """Adds the observation to the denoised signal: ``a * denoised + (1 - a) * noisy``.

    Observation adding (Iwamoto et al. 2022, "How bad are artifacts?"): a recogniser suffers more from what a denoiser
    distorts than from the noise that it leaves, and the share of distortion falls with the observation's weight.

    Args:
        kind: the weight ``a`` of the denoised signal: a number; ``learned``: one number between 0 and 1, from 0.5 on;
            ``snr``: of each clip by the SNR that the denoiser's own output suggests, ``a = sigmoid((m - SNR) / s)``.
            Where the input is clean already, there is little to gain from denoising. ``m`` (the SNR at which both
            weigh the same) and ``s`` are learned, from 10 and 5 dB on: a is 0.88 at 0 dB and 0.12 at 20 dB. This
            function is rkd's own; Wang et al. 2024 ("Bridging the gap") also let an estimated SNR decide.
    """

    MIDPOINT_DB, SLOPE_DB = 10.0, 5.0

    def __init__(self, kind: float | str):
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.logit = nn.Parameter(torch.zeros(1))
        elif kind == "snr":
            # In tens of dB, so that a learning rate made for weights of about 1 moves them.
            self.midpoint_10db = nn.Parameter(torch.tensor([self.MIDPOINT_DB / 10]))
            self.log_slope_10db = nn.Parameter(torch.tensor([math.log(self.SLOPE_DB / 10)]))

    def weight(self, denoised_BT: Tensor, noisy_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return ``a`` of each clip, ``(B,)`` or ``(1,)``."""
        if self.kind == "learned":
            return self.logit.sigmoid()
        if self.kind == "snr":
            snr_10db_B = estimated_snr_db(denoised_BT, noisy_BT, lengths_B) / 10
            return ((self.midpoint_10db - snr_10db_B) * torch.exp(-self.log_slope_10db)).sigmoid()
        return denoised_BT.new_full((1,), float(self.kind))

    def forward(self, denoised_BT: Tensor, noisy_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return what the recogniser hears, ``(B, T)``."""
        a_B1 = self.weight(denoised_BT, noisy_BT, lengths_B)[:, None]
        return a_B1 * denoised_BT + (1 - a_B1) * noisy_BT


@torch.no_grad()
def estimated_snr_db(denoised_BT: Tensor, noisy_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the level of what a denoiser kept over that of what it took away, from -40 to 40 dB; shape ``(B,)``.

    Without gradient: a denoiser must not learn to move the weight of its own output.
    """
    valid_BT = valid_mask(lengths_B, noisy_BT.shape[1])
    kept_B = (denoised_BT**2 * valid_BT).sum(1)
    removed_B = ((noisy_BT - denoised_BT) ** 2 * valid_BT).sum(1)
    return 10 * (kept_B.clamp(min=1e-12).log10() - removed_B.clamp(min=1e-12).log10()).clamp(-4, 4)


def bare(model: Any) -> Any:
    """Return a model's recogniser without the denoiser that it may wear."""
    return model.recogniser if isinstance(model, Enhanced) else model


def with_padding(model: Any) -> Any:
    """Return a model as it hears clips with silence up to its window, as Transformers gives them to it.

    The weights are shared. None: the model hears clips so already, or its kind is never given them so.
    """
    heard = bare(model).with_padding() if hasattr(bare(model), "with_padding") else None
    if heard is None or not isinstance(model, Enhanced):
        return heard
    other = copy.copy(model)
    other._modules = {**model._modules, "recogniser": heard}
    return other


def family_of(model: Any) -> str:
    """Return a model's family for people, with that of the denoiser that it wears: ``mask + whisper``."""
    family = type(bare(model)).__name__.lower()
    return f"{model.denoiser.family} + {family}" if isinstance(model, Enhanced) else family


def start_from(
    student: Any, teacher: Any, encoder_from: list[int] | None = None, decoder_from: list[int] | None = None
) -> None:
    """Copy a teacher's layers into a student, and its denoiser where both wear one of the same shape."""
    bare(student).start_from(bare(teacher), encoder_from, decoder_from)
    if isinstance(student, Enhanced) and isinstance(teacher, Enhanced):
        take_denoiser(student, teacher)


def take_denoiser(student: Enhanced, source: Enhanced) -> bool:
    """Copy a denoiser of the same shape, and what its mixing has learned if it is of the same kind; say whether."""
    ours, theirs = student.denoiser, source.denoiser
    if type(ours) is not type(theirs) or ours.shape != theirs.shape:
        return False
    ours.load_state_dict(theirs.state_dict())
    if student.mixing.kind == source.mixing.kind:
        student.mixing.load_state_dict(source.mixing.state_dict())
    return True
