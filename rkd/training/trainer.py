"""The training loop, and nothing but the loop.

Shapes: B batch, T samples, L label tokens.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rkd import ranks
from rkd.data.batches import Batch, Batches, stream
from rkd.errors import Interrupted, NumericsError
from rkd.interrupts import asked_to_stop
from rkd.losses import gradient_norms
from rkd.models.base import Streams
from rkd.phases import Phase, phases_of
from rkd.training.objective import Objective
from rkd.training.settings import Settings
from rkd.training.state import State
from rkd.training.tuning import Trained


class Watcher(Protocol):
    """Who is told how the training goes."""

    def update(self, step: int, losses: Mapping[str, float], audio_seconds: float) -> None: ...

    def validated(self, step: int, wer: float, best_wer: float) -> None: ...


def train(
    objective: Objective,
    batches: Batches,
    corrupt: Callable[[Batch, Phase], Batch],
    teach: Callable[[Batch], Sequence[Streams]],
    validate: Callable[[Any], float],
    settings: Settings,
    folder: Path,
    accelerator: Accelerator,
    watcher: Watcher,
    log_every: int,
    workers: int,
    seed: int,
    relabel: Callable[[Batch, int], Batch] | None = None,
) -> float:
    """Train until the last step, early stopping or an interruption; resume from ``folder/checkpoints`` if it can.

    Args:
        objective: student and terms; on return the student has the weights of the best validation.
        batches: the training utterances.
        corrupt: makes what the student hears in a phase out of a clean batch.
        teach: returns each teacher's streams for a batch; empty without a teacher.
        validate: returns the word error rate of a student on the validation split in noise.
        settings: see ``conf/trainer``.
        folder: of the run; gets ``checkpoints`` and ``metrics.jsonl``.
        relabel: gives the batch of a number other labels, after it is corrupted; None keeps them all.

    Returns:
        The best validation word error rate of the last phase.

    Raises:
        ConfigError: the phases do not fit, or name weights that the student does not have.
        Interrupted: after SIGINT or SIGTERM, with the state saved.
        NumericsError: a loss is not finite.
    """
    torch.manual_seed(seed + accelerator.process_index)
    phases = phases_of(asdict(settings), list(objective.terms))
    trained = Trained(objective.student, phases, settings.unfreeze_every)
    state = State(objective, settings, folder / "checkpoints", accelerator)
    feed = stream(
        batches, state.step * settings.accumulate, accelerator.process_index, accelerator.num_processes, workers,
        pin=accelerator.device.type == "cuda",
    )  # fmt: skip

    def patient() -> bool:
        if settings.patience is None or state.step <= phases[-1].start:
            return True
        return state.step - state.best_step < settings.patience * settings.validate_every

    told = folder / "metrics.jsonl" if accelerator.is_main_process else Path(os.devnull)
    with asked_to_stop() as stopped, reopened(told, state.step) as metrics:
        state.wrapped.train()
        while state.step < settings.steps and patient():
            phase = next(phase for phase in phases if state.step < phase.end)
            if state.step == phase.start:  # each is judged by itself, and the last one's best is the result
                state.best_wer, state.best_step = math.inf, state.step
            trained.at(state.trainee.student, state.step, phase)
            for group in state.optimizer.param_groups:
                group["lr"] = phase.rate(state.step) * group["rate"]
            losses, weights, audio_seconds = optimize(
                state.wrapped, state.optimizer, feed, corrupt, teach, settings, state.step, phase, accelerator, relabel
            )
            state.count_step()
            if not all(map(math.isfinite, losses.values())):
                raise NumericsError(
                    f"the loss is not finite at step {state.step} ({losses}); "
                    "lower trainer.learning_rate or set trainer.precision=fp32"
                )
            watcher.update(state.step, losses, audio_seconds)
            if state.step % log_every == 0 or state.step == settings.steps:
                line = {"step": state.step, "learning_rate": phase.rate(state.step - 1), "loss": losses}
                if objective.balance:
                    line["weight"] = weights
                metrics.write(json.dumps(line) + "\n")
            if state.step % settings.validate_every == 0 or state.step == settings.steps:
                with state.judged() as student:
                    wer = ranks.of_first(validate(student), accelerator.device.type)
                best = wer < state.best_wer
                watcher.validated(state.step, wer, min(wer, state.best_wer))
                metrics.write(json.dumps({"step": state.step, "validation_wer": wer, "best": best}) + "\n")
                if best:
                    state.best_wer, state.best_step = wer, state.step
                    state.save_best()
                state.save()
            if anywhere(stopped(), accelerator):
                state.save()
                raise Interrupted(
                    f"stopped at step {state.step} of {settings.steps}, saved; the same command goes on from there"
                )
    state.finish()
    return state.best_wer


def reopened(path: Path, step: int) -> TextIO:
    """Open what is told of a training, line by line, after the lines up to a step; what came later is told again."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]  # the last may be half a line
        draft = path.with_name(path.name + ".new")
        draft.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
        draft.replace(path)
    return path.open("a", buffering=1)


def optimize(
    wrapped: nn.Module,
    optimizer: Any,
    feed: Iterator[Batch],
    corrupt: Callable[[Batch, Phase], Batch],
    teach: Callable[[Batch], Sequence[Streams]],
    settings: Settings,
    step: int,
    phase: Phase,
    accelerator: Accelerator,
    relabel: Callable[[Batch, int], Batch] | None = None,
) -> tuple[dict[str, float], dict[str, float], float]:
    """Make one step; return each term's mean loss, the weights that they had, and the seconds of speech in it."""
    objective: Objective = accelerator.unwrap_model(wrapped)
    objective.at(step / settings.steps)
    micro = []
    for number in range(step * settings.accumulate, (step + 1) * settings.accumulate):
        batch = next(feed).to(accelerator.device)
        if not phase.hears_clean(step):
            batch = corrupt(batch, phase)
        if relabel:
            with accelerator.autocast():
                batch = relabel(batch, number)
        micro.append(batch)
    # A term's mean is over all that was accumulated, on all ranks, so its count has to be known before its gradient.
    terms = objective.all_terms
    counted = [[term.count(term.sees(batch)) * term.applies(batch) for batch in micro] for term in terms]
    heard = torch.stack([batch.seconds for batch in micro]).sum()
    own = torch.stack([*(torch.stack(counts).sum().float() for counts in counted), heard])
    counts, seconds_1 = accelerator.reduce(own, "sum").split([len(terms), 1])
    counts = counts.clamp(min=1.0)
    weights = objective.weights | phase.weights
    weights_K = torch.tensor([float(weights[name]) for name in objective.terms], device=counts.device)
    if objective.balance:
        if objective.balance.due(step - phase.start):
            norms_K = measure(objective, micro, teach, counts, accelerator)
            objective.balance.update(norms_K, anew=step == phase.start)
        weights_K = objective.balance.scaled(weights_K)
    sums = torch.zeros_like(counts)
    for batch in micro:
        with accelerator.autocast():
            values = torch.stack(list(wrapped(batch, teach(batch)).values()))
        # DDP averages gradients over the ranks; times their number it sums them.
        accelerator.backward((weights_K * values / counts).sum() * accelerator.num_processes)
        sums += values.detach()
    accelerator.clip_grad_norm_(wrapped.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    means = accelerator.reduce(sums, "sum") / counts
    *told, seconds = torch.cat([means, weights_K, seconds_1]).tolist()  # the device is waited for once
    names, n = list(objective.terms), len(objective.terms)
    return dict(zip(names, told[:n], strict=True)), dict(zip(names, told[n:], strict=True)), seconds


def measure(
    objective: Objective,
    micro: Sequence[Batch],
    teach: Callable[[Batch], Sequence[Streams]],
    counts: Tensor,
    accelerator: Accelerator,
) -> Tensor:
    """Return the norm of the gradient of each term's mean over the batches of a step; shape ``(K,)``."""

    def means() -> Iterator[dict[str, Tensor]]:
        for batch in micro:
            with accelerator.autocast():
                values = objective(batch, teach(batch))
            yield {name: value / count for (name, value), count in zip(values.items(), counts, strict=True)}

    return gradient_norms(
        means(),
        [p for p in objective.student.parameters() if p.requires_grad],
        lambda gradient_P: accelerator.reduce(gradient_P, "sum"),
        accelerator.scaler.get_scale() if accelerator.scaler else 1.0,
    )


def anywhere(flag: bool, accelerator: Accelerator) -> bool:
    """Say whether any rank has the flag up, so that all of them act on it at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)
