"""The training loop, and nothing but the loop.

Shapes: B batch, T samples, L label tokens.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rkd import ranks
from rkd.data.batches import Batch, Batches, stream
from rkd.errors import ConfigError, Interrupted, NumericsError
from rkd.interrupts import asked_to_stop
from rkd.losses import ITSELF, Adversarial, Balance, Schedule, Term, check_given, gradient_norms, sums_over_rows
from rkd.models.base import Streams
from rkd.phases import Phase, phases_of
from rkd.training import checkpoint
from rkd.training.tuning import matching, parameter_groups, unfrozen


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
    train: str | list[str]
    freeze: list[str]
    unfreeze_every: int | None
    layer_decay: float
    recompute: bool
    compile: bool
    average: float | None
    adapters: dict[str, Any] | None
    phases: list[dict[str, Any]]


class Watcher(Protocol):
    """Who is told how the training goes."""

    def update(self, step: int, losses: Mapping[str, float], audio_seconds: float) -> None: ...

    def validated(self, step: int, wer: float, best: bool) -> None: ...


class Objective(nn.Module):
    """A student and the loss terms it is trained on, as one module, so that both are optimised and synchronised.

    Args:
        student: the model that is trained.
        terms: by name.
        weights: of the terms; those that change have the values of the share of the training set by ``at``.
        balance_every: steps between two measurements of a `Balance` of the terms; None without one.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Mapping[str, Term],
        weights: Mapping[str, float | Schedule],
        balance_every: int | None = None,
    ):
        super().__init__()
        self.student = student
        self.terms = nn.ModuleDict(terms)
        self.balance = Balance(len(terms), balance_every) if balance_every else None
        self.schedules = {name: w if isinstance(w, Schedule) else Schedule.of(w) for name, w in weights.items()}
        self.at(0.0)

    def at(self, share: float) -> None:
        """Set weights and terms to their values when a share of the training, from 0 to 1, is done."""
        self.weights = {name: schedule.at(share) for name, schedule in self.schedules.items()}
        for term in self.all_terms:
            term.at(share)

    @property
    def all_terms(self) -> list[Term]:
        """The terms, in the order of their names' dictionary."""
        return cast(list[Term], list(self.terms.values()))

    def forward(self, batch: Batch, teachers: Sequence[Streams]) -> dict[str, Tensor]:
        """Return each term's sum over the batch.

        Args:
            teachers: the streams of each teacher, for terms that are not against the student itself.
        """
        streams = batch.through(self.student, batch.noisy_BT)
        itself: Streams = {}
        if any(term.against == ITSELF for term in self.all_terms):
            # After the pass with gradients: autocast keeps the weights that it cast first for both.
            with torch.no_grad():
                itself = batch.through(self.student, batch.clean_BT)

        comparing = any(term.teacher for term in self.all_terms)
        speech = {name: stream.where(batch.spoken_B) for name, stream in streams.items()} if comparing else {}
        # Stored outputs end with the speech.
        heard = {n: s.until(batch.speech_lengths_B) for n, s in speech.items()} if batch.stored else speech

        def reference(term: Term) -> Streams:
            if not term.teacher:
                return {}
            given = itself if term.against == ITSELF else teachers[term.against]
            check_given(term, given)
            return given

        def value(term: Term) -> Tensor:
            if isinstance(term, Adversarial):
                attacked = batch.through(self.student, term.perturbed(self.student, batch))
                return term(attacked, streams, batch)
            ours = streams if not term.teacher else speech if term.against == ITSELF else heard
            return term(ours, reference(term), term.sees(batch))

        terms = dict(zip(self.terms, self.all_terms, strict=True))
        taking_part = {name: term for name, term in terms.items() if term.applies(batch)}
        by_row = {name: term for name, term in taking_part.items() if term.rows_of in streams}
        values = {name: value(term) for name, term in taking_part.items() if name not in by_row}
        if by_row:
            theirs = {name: reference(term)["logits"] for name, term in by_row.items() if term.teacher}
            values |= sums_over_rows(by_row, streams["logits"], theirs, batch)
        return {name: values.get(name, batch.clean_BT.new_zeros(())) for name in terms}


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
    trained = Trained(objective, phases, settings)
    groups = parameter_groups(objective, settings.weight_decay, settings.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=settings.betas, eps=1e-6, fused=True)
    average = averaged(objective.student, settings.average) if settings.average else None
    if accelerator.is_main_process:
        for name in ("last", "best"):
            checkpoint.recover(folder / "checkpoints" / name)
    accelerator.wait_for_everyone()
    state = checkpoint.load(folder / "checkpoints" / "last")
    step, best_wer, best_step = 0, math.inf, 0
    if state:
        step, best_wer, best_step = state["step"], state["best_wer"], state["best_step"]
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
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
                    "average": average.state_dict() if average else None,
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                },
            )  # fmt: skip

    def patient() -> bool:
        in_last = step > phases[-1].start
        return (
            not in_last or settings.patience is None or step - best_step < settings.patience * settings.validate_every
        )

    told = folder / "metrics.jsonl" if accelerator.is_main_process else Path(os.devnull)
    with asked_to_stop() as stopped, reopened(told, step) as metrics:
        wrapped.train()
        while step < settings.steps and patient():
            phase = next(phase for phase in phases if step < phase.end)
            if step == phase.start:  # each is judged by itself, and the last one's best is the result
                best_wer, best_step = math.inf, step
            trained.at(step, phase)
            for group in optimizer.param_groups:
                group["lr"] = phase.rate(step) * group["rate"]
            losses, weights, audio_seconds = optimize(
                wrapped, optimizer, feed, corrupt, teach, settings, step, phase, accelerator, relabel
            )
            step += 1
            if average:
                average.update_parameters(objective.student)
            if not all(map(math.isfinite, losses.values())):
                raise NumericsError(
                    f"the loss is not finite at step {step} ({losses}); "
                    "lower trainer.learning_rate or set trainer.precision=fp32"
                )
            watcher.update(step, losses, audio_seconds)
            if step % log_every == 0 or step == settings.steps:
                line = {"step": step, "learning_rate": phase.rate(step - 1), "loss": losses}
                if objective.balance:
                    line["weight"] = weights
                metrics.write(json.dumps(line) + "\n")
            if step % settings.validate_every == 0 or step == settings.steps:
                judged = average.module if average else objective.student
                wrapped.eval()
                wer = ranks.of_first(validate(judged.eval()), accelerator.device.type)
                wrapped.train()
                best = wer < best_wer
                watcher.validated(step, wer, best)
                metrics.write(json.dumps({"step": step, "validation_wer": wer, "best": best}) + "\n")
                if best:
                    best_wer, best_step = wer, step
                    if accelerator.is_main_process:
                        checkpoint.save(folder / "checkpoints" / "best", {"student": judged.state_dict()})
                save()
            if anywhere(stopped(), accelerator):
                save()
                raise Interrupted(
                    f"stopped at step {step} of {settings.steps}, saved; the same command goes on from there"
                )
    accelerator.wait_for_everyone()
    best_state = checkpoint.load(folder / "checkpoints" / "best")
    if best_state:
        objective.student.load_state_dict(best_state["student"])
    return best_wer


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


class Trained:
    """Which of an objective's weights a step changes; a pure function of the step, so that a resume needs no memory.

    What no phase trains is frozen for good; what the loss terms learn for themselves is always trained.

    Raises:
        ConfigError: a pattern fits no weight, or a phase trains none.
    """

    def __init__(self, objective: Objective, phases: Sequence[Phase], settings: Settings):
        own = {n: p for n, p in objective.student.named_parameters() if p.requires_grad}
        self.parameters = own
        self.unfreeze_every = settings.unfreeze_every
        self.names: dict[int, set[str]] = {}  # by the phase's first step
        for phase in phases:
            names = set(own) if phase.train == "all" else matching(own, list(phase.train), "trainer.train")
            names -= matching(own, phase.freeze, "trainer.freeze")
            if not names:
                raise ConfigError("trainer.train and trainer.freeze leave no weights to train")
            self.names[phase.start] = names
        for name in set(own).difference(*self.names.values()):
            own[name].requires_grad_(False)

    def at(self, step: int, phase: Phase) -> None:
        """Freeze and unfreeze weights for a step."""
        names = self.names[phase.start]
        if self.unfreeze_every:
            names = names & unfrozen(self.parameters, (step - phase.start) // self.unfreeze_every)
        for name, p in self.parameters.items():
            p.requires_grad_(name in names)


def averaged(student: nn.Module, decay: float) -> Any:
    """Return a running average of a student's weights (Polyak & Juditsky 1992; exponential, as for mean teachers)."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
