"""What each part of the robust recipe brings, on real speech of a speaker that no training heard.

Digit strings of the Free Spoken Digit Dataset with synthetic ones mixed in, each of its speakers held out in turn, and
ESC-50 noise of classes that no training heard. Each method is a list of overrides; all have the same steps (those that
fine-tune spend half of them on clean speech), the same number of learning rates to choose from (validation word error
rate, on a seed that is not reported), and students with the same seeds, so that they share initialisation, order of the
data and noise.

    python scripts/ablation.py --fsdd /data/fsdd --noise /data/esc50 --out ablation

Runs `rkd` for everything, --jobs commands at once, so an interrupted call goes on where it was. Prints a table in
Markdown and writes it with `wer.svg` and `figures.json` to --out. The learning rates and the seeds that figures.json
has are not measured again, even where their trainings are gone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from study import best_validation, interval, rkd

SNR_DB = (20, 10, 5, 0, -5)
SEARCH_SEED = 100
# Half as many frames as the default has: a denoiser takes most of these trainings' time.
DENOISER = ("denoiser=mask_conv", "denoiser.width=48", "denoiser.layers=4", "denoiser.hop=256")
DENOISING = "+loss.terms.denoising={_target_:rkd.losses.WaveformMSE,needs:[waveform],weight:0.5}"  # as loss=denoise has
PROGRESSIVE = "trainer.phases=[{steps:0.3,train:[denoiser],weights:{ctc:0}},{train:all}]"
ON_CLEAN = ("loss=supervised", "noise.operations.none=1", "noise.operations.noise=0")
FINE_TUNED = ("loss=supervised", "trainer.clean=0")
LORA = ("trainer=lora", "trainer.adapters.targets=[conv]", "trainer.adapters.rank=2")  # 4% of the weights
# Three voices are few: at other speeds and tempos they are more. A digit lasts up to three times as long as another
# speaker's, and without tempos a teacher takes it for a longer one.
DATA = ("data.sources.digits.n_train=900", "data.speed=[0.87,1.15]", "data.tempo=[0.65,1.5]")
# As many samples a step as the student has, so that their layers can be compared.
TEACHER = (
    "teacher=mfccnet", "teacher.hop=256", "teacher.kernel=7", "teacher.encoder_layers=4", "teacher.width=128",
    "teacher.dropout=0.1", "teacher.trainer.silence=0", "teacher.trainer.clean=0.1",
    "teacher.trainer.learning_rate=3e-3", "teacher.trainer.validate_every=650", "teacher.trainer.steps=1300",
)  # fmt: skip
# A fifth of the teacher. After so few steps a transformer of that size (ctc_tiny) writes next to nothing of a
# speaker that it has not heard.
STUDENT = (
    "student=mfccnet", "student.hop=256", "student.kernel=7", "student.encoder_layers=4", "student.width=56",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        overrides: that make it.
        start: those of a student without noise that it goes on from, half of the steps each; None: it starts afresh.
    """

    overrides: tuple[str, ...]
    start: tuple[str, ...] | None = None


METHODS = {
    "labels": Method(("loss=supervised",)),
    "+ KL": Method(("loss=kd",)),
    "+ KL, noisy teacher": Method(("loss=kd", "loss.teacher_input=noisy")),
    "+ KL + hidden": Method(("loss=kd_hidden",)),
    "teacher's transcripts": Method(("loss=transcripts",)),
    "+ consistency": Method(("loss=consistency",)),
    "+ noise alone": Method(("loss=supervised", "noise.only=0.05")),
    "+ denoiser, joint": Method((*DENOISER, "loss=denoise")),
    "+ denoiser, progressive": Method((*DENOISER, "loss=denoise", PROGRESSIVE)),
    "+ denoiser, progressive, mixed": Method((*DENOISER, "loss=denoise", PROGRESSIVE, "denoiser.mixing=snr")),
    "+ KL, noisy teacher, denoiser": Method((*DENOISER, "loss=kd", "loss.teacher_input=noisy", DENOISING)),
    "fine-tuned, all weights": Method(FINE_TUNED, ON_CLEAN),
    "fine-tuned, LoRA": Method((*FINE_TUNED, *LORA), ON_CLEAN),
}
BASE = "labels"


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    fsdd: str
    noise: str
    out: Path
    steps: int
    more: list[str]

    def common(self, speaker: str) -> list[str]:
        """Return the overrides of all runs with a speaker held out."""
        return [
            f"root={self.out / 'runs'}",
            "data=fsdd_digits", f"data.sources.fsdd.path={self.fsdd}", f"data.sources.fsdd.test_speakers=[{speaker}]",
            "noise=recorded", f"noise.folder={self.noise}", "noise.split=class",
            "noise@teacher.noise=recorded", f"teacher.noise.folder={self.noise}", "teacher.noise.split=class",
            *DATA, *TEACHER, *STUDENT, *self.more,
        ]  # fmt: skip

    def student(self, method: str, rate: float, seed: int, speaker: str) -> list[str]:
        """Return the overrides of one student."""
        chosen = [*METHODS[method].overrides, f"trainer.learning_rate={rate}", f"seed={seed}"]
        if METHODS[method].start is None:
            return [*self.common(speaker), *chosen, f"trainer.steps={self.steps}"]
        start = self.start(method, seed, speaker)
        return [*self.common(speaker), *chosen, f"trainer.steps={self.steps // 2}", f"student.init_from={start}"]

    def start(self, method: str, seed: int, speaker: str) -> Path:
        """Train what a student goes on from, if that is not there yet, and return its run."""
        clean = [*(METHODS[method].start or ()), f"seed={seed}", f"trainer.steps={self.steps // 2}"]
        return rkd("distill", [*self.common(speaker), *clean], 1)

    def distill(self, method: str, rate: float, seed: int, speaker: str) -> Path:
        """Train one student and return its run."""
        return rkd("distill", self.student(method, rate, seed, speaker), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fsdd", required=True)
    parser.add_argument("--noise", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=f"{BASE} among them"
    )
    parser.add_argument("--speakers", nargs="+", default=["george", "jackson", "lucas", "nicolas"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="to choose from, for each method"
    )
    parser.add_argument("--jobs", type=int, default=2, help="commands at once, one thread each")
    parser.add_argument("more", nargs="*", help="overrides of all runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(args.fsdd, args.noise, args.out, args.steps, args.more)
    pool = ThreadPoolExecutor(args.jobs)
    taught = pool.map(lambda speaker: rkd("train-teacher", study.common(speaker), 1), args.speakers)
    teachers = dict(zip(args.speakers, taught, strict=True))
    figures = known_figures(args.out / "figures.json", args)
    rates = figures["rates"] = figures["rates"] or choose_rates(
        study, pool, args.methods, args.rates, args.speakers[0]
    )  # fmt: skip
    # Seed by seed, so that there are whole pairs, and a table of them, as soon as possible.
    for seed in range(len(figures["seeds"]), args.seeds):
        pairs = [(seed, speaker) for speaker in args.speakers]
        build_starts(study, pool, args.methods, pairs)
        wanted = [(m, rates[m], *pair) for pair in pairs for m in args.methods]
        trained = dict(zip(wanted, pool.map(lambda w: study.distill(*w), wanted), strict=True))
        measured = pool.map(partial(measure, study, rates, teachers, trained), pairs)
        figures["seeds"].append(dict(zip(args.speakers, measured, strict=True)))
        report(figures, args.out)
    print(report(figures, args.out), flush=True)


def known_figures(path: Path, args: argparse.Namespace) -> dict:
    """Return what an earlier call found for the same methods, speakers and steps.

    Its rates are by method, and what it measured by seed (a list), held-out speaker, and system.
    """
    same = {"methods": args.methods, "speakers": args.speakers, "steps": args.steps, "more": args.more}
    if not path.is_file():
        return {**same, "rates": {}, "seeds": []}
    figures = json.loads(path.read_text())
    if other := [key for key, value in same.items() if figures[key] != value]:
        raise SystemExit(f"{path} has other {' and '.join(other)}: give another --out")
    return figures


def report(figures: dict, out: Path) -> str:
    """Write the figures, their table and their plot; return the table."""
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    table = markdown(figures)
    (out / "table.md").write_text(table)
    plot(figures, out / "wer.svg")
    return table


def build_starts(study: Study, pool: ThreadPoolExecutor, methods: list[str], pairs: list[tuple[int, str]]) -> None:
    """Train what students go on from, each once: two commands that build the same would collide."""
    starts = {METHODS[m].start: m for m in methods if METHODS[m].start is not None}
    list(pool.map(lambda w: study.start(w[0], *w[1]), [(m, pair) for m in starts.values() for pair in pairs]))


def choose_rates(
    study: Study, pool: ThreadPoolExecutor, methods: list[str], rates: list[float], speaker: str
) -> dict[str, float]:
    """Return the learning rate of each method with the lowest validation word error rate, with one speaker held out."""
    if len(rates) == 1:
        return dict.fromkeys(methods, rates[0])
    build_starts(study, pool, methods, [(SEARCH_SEED, speaker)])
    tried = [(method, rate) for method in methods for rate in rates]
    runs = pool.map(lambda t: study.distill(*t, SEARCH_SEED, speaker), tried)
    wer = {t: best_validation(run) for t, run in zip(tried, runs, strict=True)}
    return {method: min(rates, key=lambda rate: wer[method, rate]) for method in methods}


def measure(study: Study, rates: dict[str, float], teachers: dict[str, Path], trained: dict, pair: tuple) -> dict:
    """Compare the students of one seed and held-out speaker with the teacher; return what there is to say of each."""
    seed, speaker = pair
    runs = {method: trained[method, rate, *pair] for method, rate in rates.items()}
    systems = [teachers[speaker], *(run for method, run in runs.items() if method != BASE)]
    evaluation = rkd("evaluate", [
        *study.student(BASE, rates[BASE], seed, speaker), "evaluate=trained", "evaluate.quality_utterances=0",
        f"evaluate.snr=[{','.join(map(str, SNR_DB))}]", f"evaluate.systems=[{','.join(map(str, systems))}]",
    ], 1)  # fmt: skip
    found = by_run(json.loads((evaluation / "results.json").read_text()))
    return {
        name: {"params": found[run.name]["params"], "validation": round(100 * best_validation(run), 2)}
        | {"row": [round(x, 2) for x in row_of(found[run.name])]}
        for name, run in {"teacher": teachers[speaker], **runs}.items()
    }


def by_run(results: dict) -> dict[str, dict]:
    """Return the systems of an evaluation by the names of their runs."""
    return {system["name"].removeprefix("student "): system for system in results["systems"]}


def row_of(system: dict) -> list[float]:
    """Return a system's WER in % on clean speech and in noise of unseen classes at each SNR; then words on noise."""
    noise = {c["snr_db"]: c["wer"] for c in system["conditions"] if c["condition"] == "noise" and c["seen"] is False}
    [clean] = [c["wer"] for c in system["conditions"] if c["condition"] == "clean"]
    alone = [c for c in system["conditions"] if c["condition"] == "noise only"]
    minutes = sum(c["audio_seconds"] for c in alone) / 60
    wer = [100 * x for x in (clean, *(noise[float(snr)] for snr in SNR_DB))]
    return [*wer, sum(c["words_on_noise"] for c in alone) / minutes]


def noisy(rows: np.ndarray) -> np.ndarray:
    """Return the mean over SNRs of each row of figures."""
    return rows[..., 1 : 1 + len(SNR_DB)].mean(-1)


def of_system(figures: dict, name: str, key: str = "row") -> np.ndarray:
    """Return a figure of a system, by seed and speaker; a row of them, WER by condition, if no other is asked for."""
    return np.array([[systems[name][key] for systems in seed.values()] for seed in figures["seeds"]])


def markdown(figures: dict) -> str:
    """Return the table: WER by method and condition, the paired difference to labels alone, and the one to choose."""
    conditions = ["clean", *(f"{snr} dB" for snr in SNR_DB), "words a minute of noise"]
    params = {name: int(of_system(figures, name, "params")[0, 0]) for name in ("teacher", *figures["methods"])}
    validation = {name: of_system(figures, name, "validation").mean() for name in params}
    # A teacher is measured again with each seed's students, in the same noise.
    teacher, base = of_system(figures, "teacher")[0], of_system(figures, BASE)
    lines = [
        f"WER in %, mean over {len(figures['speakers'])} held-out speakers and {len(base)} seeds, in noise of "
        "classes that no training heard. Difference: to labels alone, in the mean over SNRs, with a 95% t interval "
        "over seeds; closed: it as a share of the gap between labels alone and the teacher. Validation: WER on "
        "speakers that were heard.",
        "",
        "| | parameters | rate | validation | " + " | ".join(conditions) + " | difference | closed |",
        "|" + "---|" * (6 + len(conditions)),
        f"| teacher | {params['teacher']:,} | | {validation['teacher']:.1f} | "
        + " | ".join(f"{x:.1f}" for x in teacher.mean(0)) + " | | |",
    ]  # fmt: skip
    gap = (noisy(base) - noisy(teacher)).mean(1)
    for method in figures["methods"]:
        rows = of_system(figures, method)
        difference = noisy(base - rows).mean(1)
        compared = f"{with_interval(-difference, '+.2f')} | {100 * difference.mean() / gap.mean():.0f}%"
        lines.append(
            f"| {method} | {params[method]:,} | {figures['rates'][method]:g} | {validation[method]:.1f} | "
            + " | ".join(f"{x:.1f}" for x in rows.mean((0, 1)))
            + (f" | {compared} |" if method != BASE else " | | |")
        )
    small = [m for m in figures["methods"] if params[m] < params["teacher"] / 4]
    if small:
        chosen = min(small, key=lambda m: validation[m])
        lines += ["", f"Of those under a quarter of the teacher's size, validation chooses: {chosen}."]
    lines += ["", "The teachers by held-out speaker:", ""]
    lines += [
        f"- {speaker}: " + ", ".join(f"{name} {x:.1f}" for name, x in zip(conditions, row, strict=True))
        for speaker, row in zip(figures["speakers"], teacher, strict=True)
    ]
    return "\n".join(lines) + "\n"


def with_interval(values: np.ndarray, form: str) -> str:
    """Return mean and 95% interval over seeds as text; only the mean of a single seed."""
    mean, low, high = interval(values)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]" if len(values) > 1 else f"{mean:{form}}"


def plot(figures: dict, path: Path) -> None:
    """Draw each method's paired difference to labels alone, with its interval over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods = [method for method in figures["methods"] if method != BASE]
    base = of_system(figures, BASE)
    shown: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
        ("clean", lambda rows: rows[..., 0], "#888888"), ("mean over noise", noisy, "#00798c"),
    ]  # fmt: skip
    figure, axis = plt.subplots(figsize=(8, 0.45 * len(methods) + 1.2), layout="constrained")
    for k, (label, pick, colour) in enumerate(shown):
        bounds = np.array([interval(pick(of_system(figures, method) - base).mean(1)) for method in methods])
        y = np.arange(len(methods)) + 0.16 * (2 * k - 1)
        sides = [bounds[:, 0] - bounds[:, 1], bounds[:, 2] - bounds[:, 0]]
        axis.errorbar(bounds[:, 0], y, xerr=sides, fmt="o", ms=4, color=colour, label=label)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(methods)), methods)
    axis.invert_yaxis()
    axis.set_xlabel("difference in WER to labels alone (points; left is better)")
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    main()
