"""Distillation against labels alone on real speech in real noise: the figures and the picture of the README.

Spoken digit strings joined from the Free Spoken Digit Dataset, ESC-50 noise (classes of the test never trained on) and
measured rooms. A teacher; a student distilled from it; the same student on labels alone; the same steps, and a learning
rate chosen for each by its validation word error rate. Every student with several seeds, in pairs that share
initialisation, order of the data and noise.

    python scripts/real_digits.py --fsdd /data/fsdd --noise /data/esc50 --rooms /data/rir --out real_digits

Runs `rkd` for everything, so an interrupted call goes on where it was. Prints a table in Markdown and writes it with
`wer.svg` and `figures.json` to --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from study import best_validation, interval, rkd

LOSSES = ("supervised", "kd")
SEARCH_SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fsdd", required=True)
    parser.add_argument("--noise", required=True)
    parser.add_argument("--rooms", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3], help="learning rates to choose from"
    )
    parser.add_argument("overrides", nargs="*", help="another corpus, instead of data=fsdd data.path=FSDD")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    common = [
        f"root={args.out / 'runs'}",
        "noise=recorded_reverb", f"noise.folder={args.noise}", "noise.split=class", f"noise.rooms={args.rooms}",
        "noise@teacher.noise=recorded_reverb", f"teacher.noise.folder={args.noise}", "teacher.noise.split=class",
        f"teacher.noise.rooms={args.rooms}",
        "student=ctc_tiny", "teacher=ctc_small", "teacher.dropout=0.1", "trainer.steps=1200",
        *(args.overrides or ["data=fsdd", f"data.path={args.fsdd}"]),
    ]  # fmt: skip
    rates = {loss: choose_rate(loss, args.rates, common) for loss in LOSSES}
    runs = {loss: [distill(loss, rates[loss], seed, common) for seed in range(args.seeds)] for loss in LOSSES}
    others = [str(run) for loss in LOSSES for run in runs[loss] if run != runs["kd"][0]]
    overrides = [*student_of("kd", rates["kd"], 0), "evaluate=trained", "evaluate.noise_only=false"]
    overrides.append(f"evaluate.systems=[{','.join(others)}]")
    evaluation = rkd("evaluate", [*common, *overrides])
    figures = summarise(json.loads((evaluation / "results.json").read_text()), runs, rates)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    table = markdown(figures)
    (args.out / "table.md").write_text(table)
    plot(figures, args.out / "wer.svg")
    print(table)


def student_of(loss: str, rate: float, seed: int) -> list[str]:
    return [f"loss={loss}", f"trainer.learning_rate={rate}", f"seed={seed}"]


def distill(loss: str, rate: float, seed: int, common: list[str]) -> Path:
    return rkd("distill", [*common, *student_of(loss, rate, seed)])


def choose_rate(loss: str, rates: list[float], common: list[str]) -> float:
    """Return the learning rate with the lowest validation word error rate, on a seed that is not reported."""
    if len(rates) == 1:
        return rates[0]
    return min(rates, key=lambda rate: best_validation(distill(loss, rate, SEARCH_SEED, common)))


def condition_name(row: dict) -> str:
    seen = {True: " seen", False: " unseen", None: ""}[row["seen"]]
    snr = "" if row["snr_db"] is None else f" {row['snr_db']:g} dB"
    return f"{row['condition']}{seen}{snr}"


def summarise(results: dict, runs: dict[str, list[Path]], rates: dict[str, float]) -> dict:
    """Return WER by condition: the teacher's, and for each loss one figure a seed."""
    teacher = next(s for s in results["systems"] if s["role"] == "teacher")
    student = next(s for s in results["systems"] if s["role"] == "student")
    by_name = {s["name"]: s for s in results["systems"] if s["role"] == "baseline"}
    conditions = [condition_name(row) for row in teacher["conditions"]]
    wer = {"teacher": [[row["wer"] for row in teacher["conditions"]]]}
    for loss, folders in runs.items():
        systems = [student if loss == "kd" and i == 0 else by_name[run.name] for i, run in enumerate(folders)]
        wer[loss] = [[row["wer"] for row in system["conditions"]] for system in systems]
    return {
        "conditions": conditions,
        "snr_db": [row["snr_db"] for row in teacher["conditions"]],
        "kind": [row["condition"] for row in teacher["conditions"]],
        "seen": [row["seen"] for row in teacher["conditions"]],
        "n_words": [row["n_words"] for row in teacher["conditions"]],
        "learning_rates": rates,
        "params": {"teacher": teacher["params"], "student": student["params"]},
        "wer": wer,
    }


def markdown(figures: dict) -> str:
    """Return the table: WER in % by condition, and the paired difference with its interval over seeds."""
    wer = {name: 100 * np.array(rows) for name, rows in figures["wer"].items()}
    noisy = np.array([name != "clean" for name in figures["conditions"]])
    rows = [(name, figures["n_words"][i], i) for i, name in enumerate(figures["conditions"])]
    rows.append(("mean over noisy conditions", int(np.sum(np.array(figures["n_words"])[noisy])), noisy))
    lines = [
        f"Teacher {figures['params']['teacher']:,} parameters, students {figures['params']['student']:,}. "
        f"WER in %, students: mean of {len(wer['kd'])} seeds. Learning rates chosen on validation: "
        + ", ".join(f"{loss} {rate:g}" for loss, rate in figures["learning_rates"].items()) + ".",
        "",
        "| condition | words | teacher | student, labels only | student, distilled | difference, 95% interval |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, words, index in rows:
        pick = {key: (v[:, index] if isinstance(index, int) else v[:, index].mean(1)) for key, v in wer.items()}
        mean, low, high = interval(pick["kd"] - pick["supervised"])
        bounds = f" [{low:+.2f}, {high:+.2f}]" if len(wer["kd"]) > 1 else ""
        lines.append(
            f"| {name} | {words} | {pick['teacher'].mean():.1f} | {pick['supervised'].mean():.1f} | "
            f"{pick['kd'].mean():.1f} | {mean:+.2f}{bounds} |"
        )
    return "\n".join(lines) + "\n"


def plot(figures: dict, path: Path) -> None:
    """Draw WER against SNR: teacher, labels only, distilled; bands are 95% intervals over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("noise", True, "noise, classes seen"), ("noise", False, "noise, classes unseen"),
              ("noise+reverb", False, "unseen noise in a room")]  # fmt: skip
    styles = {"supervised": ("student, labels only", "#d1495b"), "kd": ("student, distilled", "#00798c"),
              "teacher": ("teacher", "#444444")}  # fmt: skip
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axis, (kind, seen, title) in zip(axes, panels, strict=True):
        chosen = [i for i, k in enumerate(figures["kind"]) if k == kind and figures["seen"][i] == seen]
        snr = [figures["snr_db"][i] for i in chosen]
        for name, (label, colour) in styles.items():
            values = 100 * np.array(figures["wer"][name])[:, chosen]
            bounds = np.array([interval(values[:, i]) for i in range(len(chosen))])
            axis.plot(
                snr,
                bounds[:, 0],
                "o-",
                ms=3.5,
                lw=1.6,
                color=colour,
                label=label,
                ls="--" if name == "teacher" else "-",
            )
            if len(values) > 1:
                axis.fill_between(snr, bounds[:, 1], bounds[:, 2], color=colour, alpha=0.18, lw=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("SNR (dB)")
        axis.grid(alpha=0.25)
        axis.invert_xaxis()
    axes[0].set_ylabel("word error rate (%)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
