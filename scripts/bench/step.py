"""Samples a second and memory of a step of distillation: the plain published recipe beside rkd's, change by change.

    python scripts/bench/step.py --threads 1 --fsdd /data/fsdd --noise /data/esc50 --rooms /data/rir
    python scripts/bench/step.py --device cuda --precision bf16 --student tiny --teacher large-v3 --batch 32
    python scripts/bench/step.py --device cuda --precision bf16 --student small --teacher large-v3 --batch 32
    python scripts/bench/step.py --device cuda --precision bf16 --student encoder-23M --teacher encoder-95M --batch 32

Prints a table in Markdown; on what it was measured goes to stderr. Models have real shapes and random weights. Without
folders clips and noise are synthetic, and there are no rooms.

"plain" works as the public Distil-Whisper training script does: clips padded to 30 s, with features made beforehand;
labels padded to 448 tokens; a live teacher; 0.8 cross-entropy + KL (T = 2) of all logits in float32. "tuned" pads to
32. Each way that follows has one change more, up to a loop by hand that has all of rkd's. Last comes `rkd distill`
itself, timed from outside: its own stages, data and trainer, with noise mixed afresh in every batch. Encoders (HuBERT
base, and two layers of it) learn by CTC and the teacher's frames; "plain" is then a live teacher in the batch.

"student's TFLOP/s" counts what the student's shapes ask for, a backward pass as two forward passes, over the time of
the whole step; in brackets is its share of what a product of large matrices reaches in the same process.

All get the same batches of one prepared corpus. A way has a process of its own; the ways take turns of a few steps, of
which the first does not count. Ways that do the same work must have the same first losses, or nothing is printed. The
device is waited for between the parts of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from encoders import ENCODERS, write_encoder
from recipes import (
    LABELS_WEIGHT,
    OF_FRAMES,
    PARTS,
    SOFT_WEIGHT,
    TEMPERATURE,
    TUNED,
    Clock,
    by_hand,
    recipes,
    time_features,
    whole,
)
from whispers import DIGITS, SHAPES, write_whisper

RATE_HZ = 16000
CORPUS_BATCHES = 10
SECONDS_PER_DIGIT = 0.62  # of FSDD's strings, gaps included
STORED = "rkd distill, stored targets"
HEARS_30_S = "rkd distill, live teacher that hears 30 s"
OTHER_BATCHES = "silence after speech"  # which makes clips longer
# The whole program, and what each way of it changes.
WHOLE = {
    STORED: ["targets.live=false"],
    "rkd distill, the student alone": ["loss=supervised"],
    "rkd distill, live teacher": ["targets.live=true"],
    HEARS_30_S: ["targets.live=true", "teacher.window=original"],
    f"{STORED}, {OTHER_BATCHES}": ["targets.live=false", "trainer.silence=0.1"],
}
OF_WINDOWS = (HEARS_30_S, f"{STORED}, {OTHER_BATCHES}")  # which an encoder has none of
PREPARE = "prepare"

# ---- in a process of its own ----


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the way that is asked for; return what was measured."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    out = args.out
    if args.way == PREPARE:
        of_v3 = args.teacher.endswith("v3")
        for role, shape in (("student", args.student), ("teacher", args.teacher)):
            if (out / role).is_dir():
                continue
            if shape in ENCODERS:
                write_encoder(out / role, shape)
            else:
                write_whisper(out / role, shape, of_v3)
        write_synthetic(out / "synthetic", args)
    n_steps = 1 if args.way == PREPARE else args.steps
    clock = Clock(torch.device(args.device), n_steps, args.turn_seconds, args.cpu_seconds, args.precision == "bf16")
    time_features(clock)
    if args.way in WHOLE:
        whole(overrides(args, args.way), clock)
    elif args.way == PREPARE:
        whole(overrides(args, STORED), clock)  # which prepares the corpus and the noise, and stores the targets
    else:
        recipe = recipes(args.precision == "bf16", args.student in ENCODERS)[args.way]
        by_hand(recipe, out / "student", out / "teacher", batches(args, recipe.stored), clock)
    return clock.told()


def batches(args: argparse.Namespace, stored: bool) -> Any:
    """Return the batches that `rkd distill` makes."""
    from omegaconf import OmegaConf

    from rkd.config import compose
    from rkd.data.batches import Batches, stream
    from rkd.data.store import Store
    from rkd.stages.plan import Plan
    from rkd.targets import StoredTeacher
    from rkd.tokenizer import encode, load_tokenizer

    cfg: Any = OmegaConf.to_container(compose("distill", overrides(args, STORED)), resolve=True)
    plan = Plan(cfg, "distill")
    store, tokenizer = Store.open(plan.speech.folder, "train"), load_tokenizer(args.out / "student")
    labels = [encode(tokenizer, text or "") for text in store.texts]
    teachers = []
    if stored:
        teachers = [StoredTeacher(plan.description(plan.teacher()).folder)]
        name = "ctc_logits" if args.student in ENCODERS else "logits"
        teachers[0].read({name: plan.stored_outputs(plan.teacher(), name, None).folder}, store.ids, labels)
    return stream(Batches(store, labels, cfg["trainer"]["batch_seconds"], cfg["seed"], teachers=teachers), 0)


def overrides(args: argparse.Namespace, way: str) -> list[str]:
    """Return what `rkd distill` is told for a way of the whole program."""
    low, high = args.seconds
    n, out = args.batch * CORPUS_BATCHES, args.out
    if args.fsdd:
        digits = [math.floor(low / SECONDS_PER_DIGIT), math.ceil(high / SECONDS_PER_DIGIT)]
        data = ["data=fsdd", f"data.path={args.fsdd}", f"data.length={digits}", f"data.n_train={2 * n}"]
        data += ["data.n_validation=20", "data.n_test=20", f"data.min_seconds={low}", f"data.max_seconds={high}"]
    else:
        data = ["data=manifest", f"data.path={out / 'synthetic' / 'speech' / 'list.jsonl'}", "data.split=official"]
    noise = "recorded_reverb" if args.rooms else "recorded"
    shapes = {"student": args.student, "teacher": args.teacher}
    names = {role: shape if shape.startswith("distil") else f"whisper-{shape}" for role, shape in shapes.items()}
    if args.student in ENCODERS:
        names = dict.fromkeys(shapes, "wav2vec2-base-960h")
    soft = [
        f"loss.terms.labels.weight={LABELS_WEIGHT}", f"loss.terms.soft.weight={SOFT_WEIGHT}",
        f"loss.terms.soft.temperature={TEMPERATURE}",
    ]  # fmt: skip
    return [
        *data, *([] if "loss=supervised" in WHOLE[way] else soft), f"root={out / 'runs'}", f"device={args.device}",
        f"student={names['student']}", f"student.source={out / 'student'}",
        f"teacher={names['teacher']}", f"teacher.source={out / 'teacher'}",
        *([] if args.student in ENCODERS else ["teacher.window=trimmed"]),
        f"noise={noise}", f"noise.folder={args.noise or out / 'synthetic' / 'noise'}",
        *([f"noise.rooms={args.rooms}"] if args.rooms else []),
        f"trainer.batch_seconds={args.batch * (low + high) / 2}", f"trainer.precision={args.precision}",
        "trainer.silence=0", "trainer.steps=100000", "trainer.validate_every=100000", "trainer.validate_utterances=1",
        *WHOLE[way],
    ]  # fmt: skip


def write_synthetic(folder: Path, args: argparse.Namespace) -> None:
    """Write speech-like clips with a manifest of digits, and noise of a few kinds, where they are asked for."""
    import soundfile

    rng = np.random.default_rng(0)
    n = args.batch * CORPUS_BATCHES
    if not args.fsdd:
        (folder / "speech").mkdir(parents=True, exist_ok=True)
        rows = []
        for i in range(n + 8):
            seconds = rng.uniform(*args.seconds)
            t_T = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
            x_T = 0.2 * rng.standard_normal(len(t_T)) * np.sin(np.pi * 2 * t_T) ** 2
            soundfile.write(folder / "speech" / f"{i}.wav", x_T, RATE_HZ)
            text = " ".join(rng.choice(DIGITS, max(1, round(seconds / SECONDS_PER_DIGIT))))
            split = "train" if i < n else ("validation", "test")[i % 2]
            rows.append({"audio": f"{i}.wav", "text": text, "speaker": f"s{i % 4}", "split": split})
        (folder / "speech" / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not args.noise:
        for i in range(40):
            (folder / "noise" / f"kind{i % 4}").mkdir(parents=True, exist_ok=True)
            x_T = np.convolve(rng.standard_normal(10 * RATE_HZ), np.ones(1 + i % 4), "same")
            soundfile.write(folder / "noise" / f"kind{i % 4}" / f"{i}.wav", 0.1 * x_T, RATE_HZ)


# ---- all of them ----


def turn(args: argparse.Namespace, way: str) -> dict[str, Any]:
    """Run a way in a process of its own; return what it told.

    Raises:
        SystemExit: it failed, with what it said.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})
    command = [sys.executable, __file__, *sys.argv[1:], "--out", str(args.out), "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check(told: dict[str, dict[str, Any]], tolerance: float, encoders: bool = False) -> None:
    """Raise SystemExit where ways that are to do the same work do not.

    Args:
        told: by way, with ``losses`` of the first step and ``samples`` of those that count.
        tolerance: relative, of losses.
        encoders: whether these are ways of encoders.
    """
    batches = max((one["samples"] for way, one in told.items() if not way.endswith(OTHER_BATCHES)), key=len, default=[])
    for way, one in told.items():
        if one["samples"] != batches[: len(one["samples"])] and not way.endswith(OTHER_BATCHES):
            raise SystemExit(f"{way}: batches of {one['samples']} clips, where others have {batches}")
        if not all(map(math.isfinite, one["losses"].values())):
            raise SystemExit(f"{way}: the loss is {one['losses']}")
    steps = recipes(any("bf16" in way for way in told), encoders)
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for way, one in told.items():
        if not way.endswith(OTHER_BATCHES):
            heard = ("masked" if steps[way].trimmed else "30 s") if way in steps else "noise"
            groups.setdefault(heard, {})[way] = one["losses"]
    for group in groups.values():
        soft = {way: losses["soft"] for way, losses in group.items() if "soft" in losses and way != HEARS_30_S}
        live = {way: loss for way, loss in soft.items() if "stored" not in way}
        for losses in ({way: losses["labels"] for way, losses in group.items()}, live):
            for way, loss in losses.items():
                if not math.isclose(loss, other := next(iter(losses.values())), rel_tol=tolerance):
                    raise SystemExit(f"{way}: the first loss is {loss}, but {other} of {next(iter(losses))}")
        # Of stored targets the smaller logits count as one outcome, which can only bring distributions closer.
        for way in soft.keys() - live.keys():
            if live and soft[way] > (1 + tolerance) * max(live.values()):
                raise SystemExit(f"{way}: the first loss is {soft[way]}, more than live")


def print_table(told: dict[str, list[dict[str, Any]]]) -> None:
    """Print the medians of all steps of all turns, by way."""
    rates = {
        way: np.concatenate([np.divide(one["samples"], one["seconds"]) for one in turns]) for way, turns in told.items()
    }
    first = next((way for way in (TUNED, OF_FRAMES) if way in rates), None)
    print(
        f"| way | samples/s, median | quartiles | step, s | speed{f', {first} = 1' if first else ''} | peak memory, GB "
        "| student's TFLOP/s | share of a step, % |\n|---|---|---|---|---|---|---|---|"
    )
    for way, turns in told.items():
        low, median, high = np.percentile(rates[way], [25, 50, 75])
        seconds = np.median(np.concatenate([one["seconds"] for one in turns]))
        faster = f"{median / np.median(rates[first]):.2f}" if first else ""
        flops, matmul = (float(np.median([one[key] for one in turns])) for key in ("flops", "matmul_flops"))
        used = f"{flops / 1e12:.3g} ({100 * flops / matmul:.0f}%)" if flops else ""
        shares = {part: 100 * float(np.mean([one["shares"][part] for one in turns])) for part in PARTS}
        parts = ", ".join(f"{part} {share:.0f}" for part, share in shares.items() if share >= 0.5)
        memory = max(one["bytes"] for one in turns) / 1e9
        print(
            f"| {way} | {median:.3g} | {low:.3g} to {high:.3g} | {seconds:.3g} | {faster} | {memory:.2f} | {used} "
            f"| {parts} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=[*SHAPES, *ENCODERS], default="tiny")
    parser.add_argument("--teacher", choices=[*SHAPES, *ENCODERS], default="base")
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch, on average")
    parser.add_argument("--seconds", type=float, nargs=2, default=(4.0, 7.0), help="shortest and longest clip")
    parser.add_argument("--fsdd", type=Path, help="folder of the Free Spoken Digit Dataset (default: synthetic)")
    parser.add_argument("--noise", type=Path, help="folder of recordings, a class a subfolder (default: synthetic)")
    parser.add_argument("--rooms", type=Path, help="folder of room responses (default: no rooms)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of torch (default: as many as it takes)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of all ways after tuned")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each way")
    parser.add_argument("--steps", type=int, default=5, help="in a turn, besides the first")
    parser.add_argument("--turn-seconds", type=float, default=30.0, help="after which a turn has no further step")
    parser.add_argument("--cpu-seconds", action="store_true", help="of the process, for a machine that others use, too")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="only ways in whose names these occur")
    parser.add_argument("--out", type=Path, help="keep models, corpus and targets there, for the next call")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.student in ENCODERS) != (args.teacher in ENCODERS):
        parser.error("an encoder teaches an encoder: choose both of them, or neither")
    if args.way:
        print(json.dumps(run(args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.out = args.out or Path(scratch)
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Let the ways take turns, and print what was measured."""
    where = turn(args, PREPARE)["where"]
    print(
        f"{where}; {args.student} <- {args.teacher}, batches of about {args.batch} x {args.seconds[0]:g} to "
        f"{args.seconds[1]:g} s, {args.precision}; {args.repetitions} turns of up to {args.steps} steps, "
        f"{'CPU' if args.cpu_seconds else 'wall'} seconds",
        file=sys.stderr,
    )
    encoders = args.student in ENCODERS
    ways = [
        *recipes(args.precision == "bf16", encoders),
        *(way for way in WHOLE if not (encoders and way in OF_WINDOWS)),
    ]
    ways = [way for way in ways if not args.only or any(words in way for words in args.only)]
    told: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(args.repetitions):
        for way in ways:
            told[way].append(turn(args, way))
            print(f"  {way}: {np.median(told[way][-1]['seconds']):.2f} s a step", file=sys.stderr)
        check({way: turns[-1] for way, turns in told.items()}, 1e-3 if args.precision == "fp32" else 2e-2, encoders)
    print_table(told)


if __name__ == "__main__":
    main()
