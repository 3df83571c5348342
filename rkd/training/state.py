"""What a checkpoint holds of a training, and how the training goes on from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rkd.errors import ConfigError
from rkd.losses import Adversarial
from rkd.training import checkpoint
from rkd.training.objective import Objective
from rkd.training.settings import Settings
from rkd.training.sharding import divided, gathered, sharded, whole
from rkd.training.tuning import parameter_groups


class State:
    """The weights that are trained, their optimiser, and how far the training is, from where its checkpoint left off.

    Args:
        objective: student and terms.
        settings: see ``conf/trainer``.
        folder: of the checkpoints: ``last``, and ``best`` with the student of the best validation.

    Attributes:
        step: how many are done.
        best_wer: lowest of the validations of the phase.
        best_step: at which it was.
        trainee: the objective, or what this rank holds of it.
        wrapped: the trainee as it is called, so that the ranks exchange gradients.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: the objective cannot be sharded, and is to be.
    """

    def __init__(self, objective: Objective, settings: Settings, folder: Path, accelerator: Accelerator):
        self.objective, self.folder, self.accelerator = objective, folder, accelerator
        if accelerator.is_main_process:
            for name in ("last", "best"):
                checkpoint.recover(folder / name)
        accelerator.wait_for_everyone()
        last = checkpoint.load(folder / "last")
        if last:
            objective.load_state_dict(last.pop("objective"))
        n, device = accelerator.num_processes, accelerator.device
        self.shards = settings.shard and n > 1
        if self.shards and any(isinstance(term, Adversarial) for term in objective.all_terms):
            raise ConfigError("trainer.shard=true: adversarial loss terms need whole weights; leave one of the two out")
        self.trainee = sharded(objective, device, n) if self.shards else objective.to(device)
        groups = parameter_groups(self.trainee, settings.weight_decay, settings.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=settings.betas, eps=1e-6, fused=True)
        self.average = averaged(self.trainee.student, settings.average) if settings.average else None
        self.step, self.best_wer, self.best_step = 0, math.inf, 0
        if last:
            self.step, self.best_wer, self.best_step = last["step"], last["best_wer"], last["best_step"]
            optimizer.load_state_dict(divided(last["optimizer"], optimizer))
            if self.average:
                self.average.load_state_dict(last["average"])
            set_random_state(last["rng"][accelerator.process_index % len(last["rng"])], device)
        self.optimizer: Any = accelerator.prepare(optimizer)
        self.wrapped = self.trainee if self.shards else accelerator.prepare(self.trainee)
        if last and accelerator.scaler:  # fp16
            accelerator.scaler.load_state_dict(last["scaler"])

    def count_step(self) -> None:
        """Count a step that has been made, and take its weights into the average."""
        self.step += 1
        if self.average:
            self.average.update_parameters(self.trainee.student)

    def save(self) -> None:
        """Save all that the training goes on from; all ranks have to take part."""
        accelerator = self.accelerator
        main, device = accelerator.is_main_process, accelerator.device
        rng = [random_state(device)]
        if accelerator.num_processes > 1:
            rng = list(accelerator.gather(rng[0][None].to(device)).cpu())
        state = {
            "step": self.step, "best_wer": self.best_wer, "best_step": self.best_step, "rng": rng,
            "objective": whole(self.trainee.state_dict(), main), "optimizer": whole(self.optimizer.state_dict(), main),
            "average": self.average.state_dict() if self.average else None,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }  # fmt: skip
        if main:
            checkpoint.save(self.folder / "last", state)

    @contextmanager
    def judged(self) -> Iterator[nn.Module]:
        """Give the student that is validated and would be the result, whole and in evaluation mode."""
        self.wrapped.eval()
        with gathered(self.trainee):
            yield self._result().eval()
        self.wrapped.train()

    def save_best(self) -> None:
        """Save the student as the best so far; all ranks have to take part."""
        student = whole(self._result().state_dict(), self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder / "best", {"student": student})

    def finish(self) -> None:
        """Give the objective's student the weights of the best validation; those that it has where none was one."""
        self.accelerator.wait_for_everyone()
        if self.shards:
            self.objective.load_state_dict(whole(self.trainee.state_dict(), keep=True))
        best = checkpoint.load(self.folder / "best")
        if best:
            self.objective.student.load_state_dict(best["student"])

    def _result(self) -> nn.Module:
        return self.average.module if self.average else self.trainee.student


def random_state(device: torch.device) -> Tensor:
    """Return the states of the generators that a training draws from, one after the other.

    On a CUDA device dropout has the device's own, but which layers of a wav2vec 2.0 are dropped is drawn on the CPU.
    """
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return torch.cat([torch.get_rng_state(), *own])


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put back what ``random_state`` returned."""
    n = len(torch.get_rng_state())
    torch.set_rng_state(state[:n].clone())  # torch 2.11 reads a part of a larger tensor at a wrong place
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[n:].clone(), device)


def averaged(student: nn.Module, decay: float) -> Any:
    """Return a running average of a student's weights (Polyak & Juditsky 1992; exponential, as for mean teachers)."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
