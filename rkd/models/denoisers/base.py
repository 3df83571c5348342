"""What a denoiser is: noisy waveforms in, denoised waveforms out.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rkd.errors import CheckpointError
from rkd.models.denoisers import CARD

# A new mask is sigmoid(3) = 0.95 almost everywhere: what a recogniser hears is hardly changed before the first step.
OPEN_MASK_LOGIT = 3.0
NARROW = 0.1


class Denoiser(nn.Module):
    """A denoiser of any family. What it returns for a clip does not depend on what the clip is batched with.

    Attributes:
        family: its name on disk.
        shape: the constructor's arguments.
    """

    family: str
    shape: dict[str, Any]

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return clips ``(B, T)`` of 16 kHz denoised, in float32, zero beyond ``lengths_B``."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the weights, and a card with family and shape."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        (folder / CARD).write_text(json.dumps({"family": self.family, "shape": self.shape}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Denoiser:
        """Load what ``save`` wrote.

        Raises:
            CheckpointError: the weights are missing, damaged or of another shape.
        """
        denoiser = cls(**card["shape"])
        try:
            denoiser.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as error:
            raise CheckpointError(
                f"{folder} does not hold a readable {card['family']} denoiser ({error}); rebuild it or name another "
                "folder"
            ) from error
        return denoiser


def open_mask(layer: nn.Linear | nn.Conv1d, bias: float = OPEN_MASK_LOGIT) -> None:
    """Initialise the last layer of a mask so that what its activation makes of ``bias`` comes out almost everywhere."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    layer.weight.data *= NARROW
