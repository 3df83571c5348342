"""The processes that work on one run together, as torchrun starts them, and the device that each works on."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from rkd.config import resolve_device, resolve_precision
from rkd.errors import ResourceError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

T = TypeVar("T")

# The first rank alone prepares, transcribes and evaluates while the others wait: for longer than the minutes after
# which torch gives up. Nothing waits in vain for a rank that failed: torchrun ends the others.
PATIENCE = timedelta(days=30)

_alone = False  # whether the first rank works by itself while the others wait


def world_size() -> int:
    """Return how many ranks there are that work now."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of them this is."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Say whether this is the first rank, the one that writes."""
    return rank() == 0


def accelerator(device: str, precision: str) -> Accelerator:
    """Return the Accelerator for the device and the precision that a configuration asks for.

    Raises:
        ConfigError: the two do not fit.
        ResourceError: this machine cannot use the device, or not with that precision.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # It would hold to the precision of the training before, but a student may have another than its teacher.
    AcceleratorState._reset_state()
    device, precision = torch_device(device).type, resolve_precision(precision, device)
    try:
        _together(device)
        return Accelerator(
            cpu=device == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            # A head whose loss term is off gets no gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"cannot use device={device} with precision {precision} ({error}); set device=cpu trainer.precision=fp32"
        ) from error


def torch_device(device: str) -> torch.device:
    """Return the device that a configuration asks for, or stands for with ``auto``.

    Raises:
        ResourceError: there is none, or its driver is there and torch cannot use it.
    """
    import torch

    device = resolve_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            f"torch {torch.__version__} cannot use this machine's CUDA device, though its driver is there (it may be "
            "too old); set device=cpu"
        )
    return torch.device(device)


def wait_for_all(device: str) -> None:
    """Wait until every rank has come here."""
    if world_size() > 1:
        _together(device).wait_for_everyone()


@contextmanager
def turn(together: bool, device: str) -> Iterator[bool]:
    """Say whether this rank takes part: all train together, the first alone does the rest while they wait.

    What the first does alone may contain turns of all; they are its own then.
    """
    global _alone
    wait_for_all(device)
    before, _alone = _alone, _alone or not together
    try:
        yield together or is_main()
    finally:
        _alone = before
    wait_for_all(device)


def of_first(value: T, device: str) -> T:
    """Return the first rank's value, so that all ranks decide alike."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _together(device)
    [value] = broadcast_object_list([value])
    return value


def _together(device: str) -> PartialState:
    from accelerate import PartialState
    from torch import distributed

    first = not distributed.is_initialized()
    state = PartialState(cpu=resolve_device(device) == "cpu", timeout=PATIENCE)
    if first:  # a process that ends with its group's threads alive can abort
        atexit.register(state.destroy_process_group)
    return state
