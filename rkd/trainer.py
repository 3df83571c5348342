"""The training loop, and nothing but the loop.

Shapes: B batch, T samples, L label tokens.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rkd import checkpoint
from rkd.data.batches import Batch, Batches, stream
from rkd.errors import Interrupted, NumericsError
from rkd.losses import Term
from rkd.models.base import Streams


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


class Watcher(Protocol):
    """Who is told how the training goes."""

    def update(self, step: int, losses: Mapping[str, float], audio_seconds: float) -> None: ...

    def validated(self, step: int, wer: float, best: bool) -> None: ...


class Objective(nn.Module):
    """A student and the loss terms it is trained on, as one module, so that both are optimised and synchronised."""

    def __init__(self, student: nn.Module, terms: Mapping[str, Term], weights: Mapping[str, float]):
        super().__init__()
        self.student = student
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)

    def forward(self, batch: Batch, teacher: Streams) -> dict[str, Tensor]:
        """Return each term's sum over the batch."""
        streams = self.student(batch.noisy_BT, batch.lengths_B, batch.labels_BL)
        return {name: term(streams, teacher, batch) for name, term in self.terms.items()}


def train(
    objective: Objective,
    batches: Batches,
    corrupt: Callable[[Batch], Batch],
    teach: Callable[[Batch], Streams],
    validate: Callable[[Any], float],
    settings: Settings,
    folder: Path,
    accelerator: Accelerator,
    watcher: Watcher,
    log_every: int,
    workers: int,
    seed: int,
) -> float:
    """Train until the last step, early stopping or an interruption; resume from ``folder/checkpoints`` if it can.

    Args:
        objective: student and terms; on return the student has the weights of the best validation.
        batches: the training utterances.
        corrupt: makes what the student hears out of a clean batch.
        teach: returns the teacher's streams for a batch; empty without a teacher.
        validate: returns the word error rate of a student on the validation split in noise.
        settings: see ``conf/trainer``.
        folder: of the run; gets ``checkpoints`` and ``metrics.jsonl``.

    Returns:
        The best validation word error rate.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with the state saved.
        NumericsError: a loss is not finite.
    """
    torch.manual_seed(seed + accelerator.process_index)
    optimizer = torch.optim.AdamW(
        parameter_groups(objective, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas, eps=1e-6
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    state = checkpoint.load(folder / "checkpoints" / "last")
    step, best_wer, best_step = 0, math.inf, 0
    if state:
        step, best_wer, best_step = state["step"], state["best_wer"], state["best_step"]
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        set_random_state(state["rng"][accelerator.process_index % len(state["rng"])], accelerator.device)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    if state and accelerator.scaler:  # fp16
        accelerator.scaler.load_state_dict(state["scaler"])
    feed = stream(
        batches, step * settings.accumulate, accelerator.process_index, accelerator.num_processes, workers,
        pin=accelerator.device.type == "cuda",
    )  # fmt: skip

    def save() -> None:
        rng = [random_state(accelerator.device)]
        if accelerator.num_processes > 1:
            gathered = accelerator.gather(rng[0][None].to(accelerator.device))
            rng = list(gathered.cpu())
        if accelerator.is_main_process:
            checkpoint.save(
                folder / "checkpoints" / "last",
                {
                    "step": step, "best_wer": best_wer, "best_step": best_step, "rng": rng,
                    "objective": objective.state_dict(), "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                },
            )  # fmt: skip

    def patient() -> bool:
        return settings.patience is None or step - best_step < settings.patience * settings.validate_every

    with stop_signals() as stopped, (folder / "metrics.jsonl").open("a") as metrics:
        wrapped.train()
        while step < settings.steps and patient():
            losses, audio_seconds = optimize(wrapped, optimizer, feed, corrupt, teach, settings, step, accelerator)
            schedule.step()
            step += 1
            if not all(map(math.isfinite, losses.values())):
                raise NumericsError(
                    f"the loss is not finite at step {step} ({losses}); "
                    "lower trainer.learning_rate or set trainer.precision=fp32"
                )
            watcher.update(step, losses, audio_seconds)
            if step % log_every == 0 and accelerator.is_main_process:
                rate = schedule.get_last_lr()[0]
                metrics.write(json.dumps({"step": step, "learning_rate": rate, "loss": losses}) + "\n")
            if step % settings.validate_every == 0 or step == settings.steps:
                wrapped.eval()
                wer = validate(objective.student)
                wrapped.train()
                best = wer < best_wer
                watcher.validated(step, wer, best)
                if accelerator.is_main_process:
                    metrics.write(json.dumps({"step": step, "validation_wer": wer}) + "\n")
                    metrics.flush()
                if best:
                    best_wer, best_step = wer, step
                    if accelerator.is_main_process:
                        checkpoint.save(folder / "checkpoints" / "best", {"student": objective.student.state_dict()})
                save()
            if anywhere(stopped(), accelerator):
                save()
                raise Interrupted(
                    f"stopped at step {step} of {settings.steps}, saved; the same command goes on from there"
                )
    best_state = checkpoint.load(folder / "checkpoints" / "best")
    if best_state:
        objective.student.load_state_dict(best_state["student"])
    return best_wer


def optimize(
    wrapped: nn.Module,
    optimizer: Any,
    feed: Iterator[Batch],
    corrupt: Callable[[Batch], Batch],
    teach: Callable[[Batch], Streams],
    settings: Settings,
    step: int,
    accelerator: Accelerator,
) -> tuple[dict[str, float], float]:
    """Make one step; return each term's mean loss and the seconds of speech in it."""
    objective: Objective = accelerator.unwrap_model(wrapped)
    clean_first = step < settings.clean * settings.steps
    micro = [next(feed).to(accelerator.device) for _ in range(settings.accumulate)]
    # A term's mean is over all that was accumulated, on all ranks, so its count has to be known before its gradient.
    terms = cast(list[Term], list(objective.terms.values()))
    own = torch.stack([torch.stack([term.count(batch) for batch in micro]).sum().float() for term in terms])
    counts = accelerator.reduce(own, "sum").clamp(min=1.0)
    weights = torch.tensor([objective.weights[name] for name in objective.terms], device=counts.device)
    sums = torch.zeros_like(counts)
    for batch in micro:
        if not clean_first:
            batch = corrupt(batch)
        with accelerator.autocast():
            values = torch.stack(list(wrapped(batch, teach(batch)).values()))
        # DDP averages gradients over the ranks; times their number it sums them.
        accelerator.backward((weights * values / counts).sum() * accelerator.num_processes)
        sums += values.detach()
    accelerator.clip_grad_norm_(wrapped.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    means = accelerator.reduce(sums, "sum") / counts
    seconds = accelerator.reduce(torch.stack([batch.seconds for batch in micro]).sum(), "sum")
    return dict(zip(objective.terms, means.tolist(), strict=True)), float(seconds)


def anywhere(flag: bool, accelerator: Accelerator) -> bool:
    """Say whether any rank has the flag up, so that all of them act on it at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def random_state(device: torch.device) -> Tensor:
    """Return the state of the generator that dropout on a device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put back what ``random_state`` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: matrices decay, biases and norms do not (as in GPT-2 and Whisper)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate_factor(step: int, settings: Settings) -> float:
    """Return the share of the learning rate that a step uses: a linear warm-up, then the schedule down to zero."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if settings.schedule == "linear":
        return 1.0 - progress
    return 1.0


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question the loop can ask after each step; a second SIGINT stops at once."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
