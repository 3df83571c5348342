"""Denoisers, which stand in front of a recogniser, and their folders on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rkd.errors import CheckpointError

CARD = "denoiser.json"


def load_denoiser(folder: Path, families: Mapping[str, Any]) -> Any:
    """Load what ``Denoiser.save`` wrote.

    Args:
        folder: of one denoiser.
        families: classes by family name. A folder names its family, never a class: what is on disk is not executed.

    Raises:
        CheckpointError: a file is missing, damaged, or of a family that is not known.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        family = card["family"]
        if family not in families:
            raise CheckpointError(
                f"{folder / CARD} names the denoiser {family}; known are {', '.join(families)}: for a denoiser of your "
                "own, choose its configuration, too"
            )
        return families[family].load(folder, card)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder} is damaged ({error!r}); rebuild it or name another folder") from error
