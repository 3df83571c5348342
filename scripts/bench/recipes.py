"""What `step.py` times: steps written by hand, from a published recipe towards rkd's, and the whole of `rkd distill`.

Shapes: B clips, M mel bins, F frames, L label tokens, I tokens that a decoder is given, V vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from rkd.audio import RATE_HZ
from rkd.data.batches import Batch
from rkd.features import LogMel
from rkd.losses import CTC, CrossEntropy, SoftFrames, SoftTokens, sums_over_rows
from rkd.models.hub_ctc import HubCTC
from rkd.models.hub_whisper import HubWhisper
from rkd.models.whisper import WhisperRecogniser

LABELS_WEIGHT, SOFT_WEIGHT, TEMPERATURE = 0.8, 1.0, 2.0
WARM_UP = 1  # steps that do not count
FAMILIES: tuple[Any, ...] = (WhisperRecogniser, HubCTC)
PARTS = ("data", "mixing", "features", "teacher", "student", "loss", "backward", "optimiser")

# ---- time and memory ----


@dataclass
class Clock:
    """Times steps and, exclusive of each other, their parts. Waits for the device between them."""

    device: torch.device
    n_steps: int  # to time
    max_seconds: float  # after which no further one is timed
    of_process: bool = False  # CPU seconds of the process instead of those on the wall
    bf16: bool = False  # what is timed computes in it
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    first_losses: dict[str, float] = field(default_factory=dict)
    heard: list[tuple[Any, ...]] = field(default_factory=list)  # which student heard clips of which shape, and the rest
    parts: Counter = field(default_factory=Counter)
    _within: list[float] = field(default_factory=list)  # by open part, the seconds of parts inside it
    _steps: int = 0
    _started: float = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.of_process else time.perf_counter()

    def start(self) -> None:
        self._started = self.now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.now()
        self._within.append(0.0)
        yield
        taken = self.now() - started
        self.parts[name] += taken - self._within.pop()
        if self._within:
            self._within[-1] += taken

    def of(self, function: Callable, part: str | Callable[[], str]) -> Callable:
        """Return a function whose time is a part of the step."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part if isinstance(part, str) else part()):
                return function(*args, **kwargs)

        return timed

    def step(self, samples: int, losses: Mapping[str, float]) -> bool:
        """End a step, and start the next one; say whether there is to be one."""
        taken = self.now() - self._started
        if not self._steps:
            self.first_losses = dict(losses)
        self._steps += 1
        if self._steps <= WARM_UP:
            self.parts.clear()
        else:
            self.seconds.append(taken)
            self.samples.append(samples)
        self.start()
        return len(self.seconds) < self.n_steps and sum(self.seconds) < self.max_seconds

    def told(self) -> dict[str, Any]:
        total = sum(self.seconds)
        memory = peak(self.device)  # before more is computed
        shares = {name: self.parts[name] / total for name in PARTS}
        timed = self.heard[WARM_UP : WARM_UP + len(self.seconds)]
        flops = sum(
            model_flops(student, torch.zeros(shape, device=self.device), *rest) for student, shape, *rest in timed
        )
        on_gpu = self.device.type == "cuda"
        return {
            "seconds": self.seconds, "samples": self.samples, "losses": self.first_losses, "bytes": memory,
            "shares": shares, "flops": flops / total, "matmul_flops": matmul_flops(self) if flops else 0.0,
            "where": f"{torch.cuda.get_device_name(self.device) if on_gpu else 'CPU'}, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads",
        }  # fmt: skip


def peak(device: torch.device) -> int:
    """Return the most memory that was in use: of a GPU's what tensors held, else what of the process was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage tells of a process's parent, too, where that was larger
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def model_flops(student: Any, *given: Any) -> int:
    """Return the floating-point operations that a student's step takes by its shapes, without what is done twice.

    A backward pass has two products for each of the forward pass. That the first layer needs no gradient of its input,
    and log-mels none at all, is left out of account: up to 2% too many of whisper-tiny.

    Args:
        given: to its forward pass.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = student(*given).get("logits")
        if logits is not None:
            logits.project(logits.rows(logits.mask()))
    return 3 * counter.get_total_flops()


def matmul_flops(clock: Clock) -> float:
    """Return the floating-point operations a second of a product of large matrices, the best of several."""
    on_gpu = clock.device.type == "cuda"
    n = 8192 if on_gpu else 2048
    a, b = torch.randn(2, n, n, device=clock.device, dtype=torch.bfloat16 if clock.bf16 else torch.float32)
    seconds = []
    for _ in range(10):
        started = clock.now()
        a @ b
        seconds.append(clock.now() - started)
    return 2 * n**3 / min(seconds)


# ---- steps by hand ----


@dataclass(frozen=True)
class Recipe:
    """A way to make a step; the defaults are those of the public Distil-Whisper training script.

    Attributes:
        tokens: that the decoder is given, prompt and padding included; None for those of the batch's longest text.
        bf16: autocast.
        trimmed: up to the batch's longest clip, with masks, features in the batch: rkd's Whisper. Otherwise 30 s:
            Transformers', with features made beforehand, as that script does.
        rows: the loss of label tokens alone, in parts; otherwise of all logits, in float32.
        fused: AdamW.
        stored: the teacher's largest logits are read; otherwise it hears the batch.
    """

    tokens: int | None = 448
    bf16: bool = False
    trimmed: bool = False
    rows: bool = False
    fused: bool = False
    stored: bool = False


TUNED = "tuned: labels padded to 32"
OF_FRAMES = "plain: a live teacher"


def recipes(bf16: bool, encoders: bool = False) -> dict[str, Recipe]:
    """Return ways from the published recipe to rkd's loop, each with one change more than the one before.

    Args:
        encoders: of models of frames, which have neither a window nor a decoder.
    """
    ways = {"plain": Recipe(), TUNED: Recipe(tokens=32)}
    further: list[tuple[str, dict[str, Any]]] = [
        ("positions of the longest clip", {"trimmed": True}),
        ("labels of the longest text", {"tokens": None}),
        ("loss in parts, without padding", {"rows": True}),
    ]
    if encoders:
        ways, further = {OF_FRAMES: Recipe(tokens=None, trimmed=True)}, []
    further += [("fused AdamW", {"fused": True}), ("stored targets", {"stored": True})]
    # In half precision all that follows is another matter, so there the published recipe has it, too.
    for name, change in [("bf16 autocast", {"bf16": True})] * bf16 + further:
        ways[f"+ {name}"] = replace(list(ways.values())[-1], **change)
    return ways


def by_hand(recipe: Recipe, student: Path, teacher: Path, batches: Iterator[Batch], clock: Clock) -> None:
    """Make steps as a recipe says.

    Args:
        student, teacher: folders of models.
        batches: with the teacher's stored outputs, where the recipe reads them.
    """
    frames = not (student / "generation_config.json").is_file()
    way = (Frames if frames else Trimmed if recipe.trimmed else Published)(recipe, student, teacher, clock)
    model = way.student.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=recipe.fused or None)
    going_on = True
    while going_on:
        given = way.prepared(next(batches).to(clock.device))
        clock.start()
        with torch.autocast(clock.device.type, torch.bfloat16, enabled=recipe.bf16):
            labels, soft = way.losses(*given)
        with clock.part("backward"):
            (LABELS_WEIGHT * labels + SOFT_WEIGHT * soft).backward()
        with clock.part("optimiser"):
            clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        going_on = clock.step(len(given[0]), {"labels": labels.item(), "soft": soft.item()})


class Published:
    """Steps with Transformers' Whisper, which hears 30 s; the teacher hears every batch."""

    def __init__(self, recipe: Recipe, student: Path, teacher: Path, clock: Clock):
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

        self.recipe, self.clock = recipe, clock
        self.student, self.teacher = (
            WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(clock.device)
            for folder in (student, teacher)
        )
        self.teacher.eval().requires_grad_(False)
        self.extractor = WhisperFeatureExtractor.from_pretrained(student)
        self.prompt = HubWhisper(student).prompt

    def prepared(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return features ``(B, M, F)``, what the decoder is given ``(B, I)``, and what it should say to that."""
        clips = [x_T[:n].numpy(force=True) for x_T, n in zip(batch.clean_BT, batch.lengths_B.tolist(), strict=True)]
        mel_BMF = self.extractor(clips, sampling_rate=RATE_HZ, return_tensors="pt").input_features
        prompt_BI = torch.tensor([self.prompt], device=self.clock.device).expand(len(clips), -1)
        labels_BI = torch.cat([torch.full_like(prompt_BI[:, 1:], -100), batch.labels_BL], 1)
        inputs_BI = torch.cat([prompt_BI, batch.labels_BL[:, :-1].clamp(min=0)], 1)
        assert self.recipe.tokens
        padding = (0, self.recipe.tokens - inputs_BI.shape[1])
        return mel_BMF.to(self.clock.device), F.pad(inputs_BI, padding), F.pad(labels_BI, padding, value=-100)

    def losses(self, mel_BMF: Tensor, inputs_BI: Tensor, labels_BI: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-entropy and divergence, means over label tokens."""
        with self.clock.part("student"):
            ours_BIV = self.student(input_features=mel_BMF, decoder_input_ids=inputs_BI).logits
        with self.clock.part("teacher"), torch.no_grad():
            theirs_BIV = self.teacher(input_features=mel_BMF, decoder_input_ids=inputs_BI).logits
        with self.clock.part("loss"):
            return of_all(ours_BIV.float(), theirs_BIV.float(), labels_BI)


class Trimmed:
    """Steps with rkd's Whisper, which hears no more than the batch's longest clip."""

    def __init__(self, recipe: Recipe, student: Path, teacher: Path, clock: Clock):
        self.recipe, self.clock = recipe, clock
        self.student = HubWhisper(student, window="trimmed").to(clock.device)
        self.teacher = None if recipe.stored else HubWhisper(teacher, window="trimmed").to(clock.device)
        if self.teacher:
            self.teacher.eval().requires_grad_(False)
        self.terms = {"labels": CrossEntropy(), "soft": SoftTokens(temperature=TEMPERATURE)}

    def prepared(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Return the clips, and their batch with labels padded as the recipe says."""
        if self.recipe.tokens:
            n = self.recipe.tokens - len(self.student.prompt) + 1
            batch.labels_BL = F.pad(batch.labels_BL, (0, n - batch.labels_BL.shape[1]), value=-100)
        return batch.clean_BT, batch

    def losses(self, clean_BT: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return cross-entropy and divergence, means over label tokens."""
        with self.clock.part("student"):
            ours = batch.through(self.student, clean_BT)["logits"]
        with self.clock.part("teacher"), torch.no_grad():
            theirs = (batch.through(self.teacher, clean_BT) if self.teacher else batch.stored[0])["logits"]
        with self.clock.part("loss"):
            if not self.recipe.rows:
                return of_all(ours.values_BND.float(), theirs.values_BND.float(), batch.labels_BL)
            sums = sums_over_rows(self.terms, ours, {"soft": theirs}, batch)
            return sums["labels"] / batch.n_tokens, sums["soft"] / batch.n_tokens


class Frames:
    """Steps with rkd's CTC models on waveforms, on clips padded to the batch's longest."""

    def __init__(self, recipe: Recipe, student: Path, teacher: Path, clock: Clock):
        self.clock, self.student = clock, HubCTC(student).to(clock.device)
        self.teacher = None if recipe.stored else HubCTC(teacher).to(clock.device)
        if self.teacher:
            self.teacher.eval().requires_grad_(False)
        self.labels, self.soft = CTC(), SoftFrames(temperature=TEMPERATURE)
        self.labels.bind(self.student, None)

    def prepared(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Return the clips, and their batch."""
        return batch.clean_BT, batch

    def losses(self, clean_BT: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sums over frames of CTC and divergence by label tokens."""
        with self.clock.part("student"):
            ours = batch.through(self.student, clean_BT)
        with self.clock.part("teacher"), torch.no_grad():
            theirs = batch.through(self.teacher, clean_BT) if self.teacher else batch.stored[0]
        with self.clock.part("loss"):
            labels, soft = self.labels(ours, {}, batch), self.soft(ours, theirs, batch)
            return labels / batch.n_tokens, soft / batch.n_tokens


def of_all(ours_BLV: Tensor, theirs_BLV: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and T^2 KL(teacher || student) as the public script computes them, of padding, too."""
    cross_entropy = F.cross_entropy(ours_BLV.flatten(0, 1), labels_BL.flatten())
    p_BLV = (theirs_BLV / TEMPERATURE).softmax(-1)
    log_q_BLV = (ours_BLV / TEMPERATURE).log_softmax(-1)
    valid_BL1 = (labels_BL >= 0)[..., None]
    divergence = (F.kl_div(log_q_BLV, p_BLV, reduction="none") * valid_BL1).sum() / valid_BL1.sum()
    return cross_entropy, divergence * TEMPERATURE**2


# ---- the whole program ----


class Enough(Exception):
    """Raised where there are steps enough: what follows the last one is not measured."""


def whole(overrides: list[str], clock: Clock) -> None:
    """Run ``rkd distill`` until there are steps enough, with what it is made of timed from outside."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from rkd import assemble, stages
    from rkd.config import compose
    from rkd.stages import training
    from rkd.training import trainer
    from rkd.training.objective import Objective

    sizes: list[int] = []
    read = trainer.stream

    def batches(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        feed = read(*args, **kwargs)
        while True:
            with clock.part("data"):
                batch = next(feed)
            sizes.append(len(batch.ids))
            yield batch

    class Progress(training.Progress):
        def update(self, step: int, losses: dict[str, float], audio_seconds: float) -> None:
            if not clock.step(sizes.pop(), losses):
                raise Enough

    def noted(forward: Callable) -> Callable:
        def heard(*given: Any) -> Any:
            if torch.is_grad_enabled():
                student, clips_BT, *rest = given  # clips are not kept: they would count as the program's memory
                clock.heard.append((student, clips_BT.shape, *rest))
            return forward(*given)

        return heard

    def whose() -> str:
        return "student" if torch.is_grad_enabled() else "teacher"

    for family in FAMILIES:
        family.forward = noted(family.forward)
    times: list[tuple[Any, str, Any]] = [
        (assemble, "corrupt", "mixing"),
        *((family, "forward", whose) for family in FAMILIES),
        (Objective, "forward", "loss"),
        (Accelerator, "backward", "backward"),
        (Accelerator, "clip_grad_norm_", "optimiser"),
        (AcceleratedOptimizer, "step", "optimiser"),
        (AcceleratedOptimizer, "zero_grad", "optimiser"),
    ]
    for owner, name, part in times:
        setattr(owner, name, clock.of(getattr(owner, name), part))
    trainer.stream, training.Progress = batches, Progress  # type: ignore[misc,assignment]
    clock.start()
    with suppress(Enough):
        stages.run("distill", compose("distill", overrides), overrides)


def time_features(clock: Clock) -> None:
    """Have the making of features timed, wherever it happens."""
    for name in ("forward", "of_window"):
        setattr(LogMel, name, clock.of(getattr(LogMel, name), "features"))
