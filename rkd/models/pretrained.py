"""What the families of pretrained models share: reading Transformers' folders, and taking a teacher's layers.

Nothing of a folder is executed: the classes are Transformers' own, weights are safetensors or plain tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from rkd.errors import CheckpointError


def load_pretrained(model_class: Any, folder: Path, config: Any, fresh: Sequence[str] = ()) -> Any:
    """Return a Transformers model with a folder's weights, in float32.

    Args:
        model_class: a class of Transformers, or one with the same weights.
        config: of the model; it may differ from the folder's in the vocabulary alone.
        fresh: names of weights that need not fit: they are initialised.

    Raises:
        CheckpointError: the folder is damaged, or lacks weights that are not fresh.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is told below
    logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, weights_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # whatever its readers raise
        raise CheckpointError(
            f"{folder} holds no readable model ({' '.join(str(error).split())[:200]}); copy or build it again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    # The embedding of masked frames belongs to pretraining.
    missing = sorted(k for k in info["missing_keys"] if k not in fresh and not k.endswith("masked_spec_embed"))
    if missing:
        raise CheckpointError(
            f"{folder} lacks weights of the model that its config.json describes, such as {missing[0]}"
        )
    for name, found, wanted in sorted(info["mismatched_keys"]):
        if name not in fresh:
            raise CheckpointError(
                f"{folder}: {name} has the shape {list(found)}, where config.json asks for {list(wanted)}"
            )
    return model.eval()


def take_layers(
    own: Mapping[str, Tensor], teacher: Mapping[str, Tensor], layers: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return a teacher's weights under a student's names.

    Args:
        own: the student's state dict, whose names count.
        teacher: the teacher's state dict.
        layers: for each stack of layers, by the name of its list, the teacher's layer for each of the student's.
    """
    taken = {}
    for name in own:
        origin = name
        for stack, chosen in layers.items():
            if match := re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", name):
                origin = f"{stack}.{chosen[int(match[1])]}.{match[2]}"
        # Of WavLM's layers the first alone has the table of relative positions.
        taken[name] = teacher[origin] if origin in teacher else teacher[name]
    return taken
