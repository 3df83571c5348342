"""What each part of the robust recipe brings, on real speech of a speaker that no training heard.

Digit strings of the Free Spoken Digit Dataset with synthetic ones mixed in, each of its speakers held out in turn, and
ESC-50 noise of classes that no training heard. Each method is a list of overrides; all have the same steps, the same
number of learning rates to choose from (validation word error rate, on a seed that is not reported), and students with
the same seeds, so that they share initialisation, order of the data and noise.

    python scripts/ablation.py --fsdd /data/fsdd --noise /data/esc50 --out ablation

Runs `rkd` for everything, --jobs commands at once, so an interrupted call goes on where it was. Prints a table in
Markdown and writes it with `wer.svg` and `figures.json` to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

SNR_DB = (20, 10, 5, 0, -5)
SEARCH_SEED = 100
DENOISER = ["denoiser=mask_conv", "denoiser.width=48", "denoiser.layers=4", "loss=denoise"]
SOFT = "+loss.terms.soft={_target_:rkd.losses.SoftFrames,needs:[ctc_logits],teacher:[ctc_logits],weight:0.7}"
PROGRESSIVE = "trainer.phases=[{steps:0.3,train:[denoiser],weights:{ctc:0}},{train:all}]"
METHODS: dict[str, list[str]] = {
    "supervised": ["loss=supervised"],
    "+ KL": ["loss=kd"],
    "+ KL, noisy teacher": ["loss=kd", "loss.teacher_input=noisy"],
    "+ KL + hidden": ["loss=kd_hidden"],
    "+ consistency": ["loss=consistency"],
    "+ denoiser, joint": DENOISER,
    "+ denoiser, progressive": [*DENOISER, PROGRESSIVE],
    "+ denoiser, progressive, mixed": [*DENOISER, PROGRESSIVE, "denoiser.mixing=snr"],
    "teacher's transcripts": ["loss=transcripts"],
}
BASE = "supervised"


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    fsdd: str
    noise: str
    out: Path
    steps: int
    teacher: list[str]

    def common(self, speaker: str) -> list[str]:
        """Return the overrides of all runs with a speaker held out."""
        return [
            f"root={self.out / 'runs'}",
            "data=fsdd_digits", f"data.sources.fsdd.path={self.fsdd}", f"data.sources.fsdd.test_speakers=[{speaker}]",
            "noise=recorded", f"noise.folder={self.noise}", "noise.split=class",
            "noise@teacher.noise=recorded", f"teacher.noise.folder={self.noise}", "teacher.noise.split=class",
            "student=ctc_tiny", "teacher=ctc_small", f"trainer.steps={self.steps}", *self.teacher,
        ]  # fmt: skip

    def student(self, method: str, rate: float, seed: int, speaker: str) -> list[str]:
        """Return the overrides of one student."""
        chosen = [f"trainer.learning_rate={rate}", f"seed={seed}"]
        return [*self.common(speaker), *METHODS[method], *chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fsdd", required=True)
    parser.add_argument("--noise", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--speakers", nargs="+", default=["george", "jackson", "lucas", "nicolas"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3], help="to choose from, for each method")
    parser.add_argument("--jobs", type=int, default=2, help="commands at once, one thread each")
    parser.add_argument("teacher", nargs="*", help="overrides of the teacher's training")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(args.fsdd, args.noise, args.out, args.steps, args.teacher)
    pool = ThreadPoolExecutor(args.jobs)
    for _ in pool.map(lambda speaker: rkd("train-teacher", study.common(speaker)), args.speakers):
        pass
    rates = choose_rates(study, pool, args.methods, args.rates, args.speakers[0])
    # Method by method for all seeds of a speaker, so that what is there after an interruption can be compared.
    wanted = [(seed, s, m) for seed in range(args.seeds) for s in args.speakers for m in args.methods]
    done = pool.map(lambda w: rkd("distill", study.student(w[2], rates[w[2]], w[0], w[1])), wanted)
    runs = dict(zip(wanted, done, strict=True))
    evaluations = pool.map(lambda speaker: evaluate(study, rates, runs, speaker), args.speakers)
    figures = summarise(dict(zip(args.speakers, evaluations, strict=True)), runs, args.methods, rates)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    table = markdown(figures)
    (args.out / "table.md").write_text(table)
    plot(figures, args.out / "wer.svg")
    print(table)


def rkd(stage: str, overrides: Iterable[str]) -> Path:
    """Run a stage on one thread and return its folder."""
    command = [sys.executable, "-m", "rkd", stage, *overrides]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return Path(done.stdout.strip())


def choose_rates(
    study: Study, pool: ThreadPoolExecutor, methods: list[str], rates: list[float], speaker: str
) -> dict[str, float]:
    """Return the learning rate of each method with the lowest validation word error rate, with one speaker held out."""
    if len(rates) == 1:
        return dict.fromkeys(methods, rates[0])
    tried = [(method, rate) for method in methods for rate in rates]
    runs = pool.map(lambda t: rkd("distill", study.student(*t, SEARCH_SEED, speaker)), tried)
    wer = {t: best_validation(run) for t, run in zip(tried, runs, strict=True)}
    return {method: min(rates, key=lambda rate: wer[method, rate]) for method in methods}


def best_validation(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return min(line["validation_wer"] for line in lines if "validation_wer" in line)


def evaluate(study: Study, rates: dict[str, float], runs: dict[tuple, Path], speaker: str) -> Path:
    """Compare all students of a held-out speaker with the teacher, and return the run's folder."""
    ((seed, _, method), _), *others = [(key, run) for key, run in runs.items() if key[1] == speaker]
    snr = ",".join(map(str, SNR_DB))
    systems = ",".join(str(run) for _, run in others)
    return rkd("evaluate", [
        *study.student(method, rates[method], seed, speaker), "evaluate=trained", f"evaluate.snr=[{snr}]",
        "evaluate.noise_only=false", f"evaluate.systems=[{systems}]",
    ])  # fmt: skip


def summarise(evaluations: dict[str, Path], runs: dict[tuple, Path], methods: list[str], rates: dict) -> dict:
    """Return WER by method, seed, speaker and condition, and the teachers' by speaker and condition."""
    wer: dict[str, list] = {"teacher": []}
    seeds = sorted({seed for seed, _, _ in runs})
    by_speaker = {}
    for speaker, folder in evaluations.items():
        systems = json.loads((folder / "results.json").read_text())["systems"]
        by_speaker[speaker] = {s["name"]: s for s in systems}
        wer["teacher"].append(rows_of(next(s for s in systems if s["role"] == "teacher")))
    params = {}
    for method in methods:
        named = [[by_speaker[s][runs[seed, s, method].name] for s in evaluations] for seed in seeds]
        wer[method] = [[rows_of(system) for system in row] for row in named]
        params[method] = named[0][0]["params"]
    return {"conditions": ["clean", *(f"{snr} dB" for snr in SNR_DB)], "speakers": list(evaluations), "seeds": seeds,
            "methods": methods, "rates": rates, "params": params, "wer": wer}  # fmt: skip


def rows_of(system: dict) -> list[float]:
    """Return a system's WER on clean speech, and in noise of unseen classes at each SNR."""
    noise = {c["snr_db"]: c["wer"] for c in system["conditions"] if c["condition"] == "noise" and c["seen"] is False}
    clean = next(c["wer"] for c in system["conditions"] if c["condition"] == "clean")
    return [clean, *(noise[float(snr)] for snr in SNR_DB)]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return mean and 95% t interval over seeds."""
    mean, n = float(values.mean()), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return mean, mean - half, mean + half


def markdown(figures: dict) -> str:
    """Return the table: WER in % by method and condition, and the paired difference to labels alone."""
    wer = {name: 100 * np.array(values) for name, values in figures["wer"].items()}
    teacher_SC = wer["teacher"]
    n_seeds, speakers = len(figures["seeds"]), figures["speakers"]
    lines = [
        f"WER in %, mean over {len(speakers)} held-out speakers and {n_seeds} seeds; noise of classes that no training "
        "heard. Difference: to labels alone, in the mean over noise, with a 95% t interval over seeds.",
        "",
        "| | parameters | rate | " + " | ".join(figures["conditions"]) + " | difference | interval |",
        "|" + "---|" * (5 + len(figures["conditions"])),
        "| teacher | | | " + " | ".join(f"{x:.1f}" for x in teacher_SC.mean(0)) + " | | |",
    ]
    for method in figures["methods"]:
        row = wer[method].mean((0, 1))
        difference = "| "
        if method != BASE and BASE in wer:
            noisy_S = (wer[method] - wer[BASE])[:, :, 1:].mean((1, 2))
            mean, low, high = interval(noisy_S)
            difference = f"{mean:+.2f} | [{low:+.2f}, {high:+.2f}]"
        lines.append(
            f"| {method} | {figures['params'][method]:,} | {figures['rates'][method]:g} | "
            + " | ".join(f"{x:.1f}" for x in row) + f" | {difference} |"
        )  # fmt: skip
    lines += ["", "Teachers by speaker, clean and at each SNR:", ""]
    lines += [f"- {s}: " + ", ".join(f"{x:.1f}" for x in row) for s, row in zip(speakers, teacher_SC, strict=True)]
    return "\n".join(lines) + "\n"


def plot(figures: dict, path: Path) -> None:
    """Draw each method's paired difference to labels alone, by condition, with its interval over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wer = {name: 100 * np.array(values) for name, values in figures["wer"].items()}
    methods = [m for m in figures["methods"] if m != BASE]
    figure, axis = plt.subplots(figsize=(8, 0.45 * len(methods) + 1.2), layout="constrained")
    shown: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
        ("clean", lambda d: d[:, :, 0].mean(1), "#888888"),
        ("mean over noise", lambda d: d[:, :, 1:].mean((1, 2)), "#00798c"),
    ]
    for k, (label, pick, colour) in enumerate(shown):
        bounds = np.array([interval(pick(wer[m] - wer[BASE])) for m in methods])
        y = np.arange(len(methods)) + 0.16 * (2 * k - 1)
        axis.errorbar(
            bounds[:, 0], y, xerr=[bounds[:, 0] - bounds[:, 1], bounds[:, 2] - bounds[:, 0]],
            fmt="o", ms=4, color=colour, label=label,
        )  # fmt: skip
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(methods)), methods)
    axis.invert_yaxis()
    axis.set_xlabel("difference in WER to labels alone (points; left is better)")
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    main()
