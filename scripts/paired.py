"""Do two ways of training end at different word error rates? Pairs of students that differ in nothing else.

Both students of a pair have the same seed, so that they share initialisation, order of the data and noise.

    python scripts/paired.py --out paired --a targets.live=false --b targets.live=true -- student=ctc_tiny

Runs `rkd` for everything, --jobs commands at once, so an interrupted call goes on where it was. Prints a table in
Markdown.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats
from study import interval, rkd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--a", nargs="+", required=True, metavar="OVERRIDE", help="of the one way")
    parser.add_argument("--b", nargs="+", required=True, metavar="OVERRIDE", help="of the other")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="commands at once, one thread each")
    parser.add_argument("overrides", nargs="*", help="of all runs")
    args = parser.parse_args()
    common = [f"root={args.out / 'runs'}", *args.overrides]
    wanted = [[*common, *way, f"seed={seed}"] for way, seed in product((args.a, args.b), range(args.seeds))]
    rkd("distill", wanted[0])  # with what all have in common, once
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda overrides: rkd("distill", overrides, 1), wanted))
    others = ",".join(map(str, runs[1:]))
    evaluation = rkd("evaluate", [*wanted[0], "evaluate=trained", f"evaluate.systems=[{others}]"])
    wer = by_run(json.loads((evaluation / "results.json").read_text()))
    names = [run.name for run in runs]
    a, b = (np.array([wer[name] for name in part]) for part in (names[: args.seeds], names[args.seeds :]))
    print(table(" ".join(args.a), " ".join(args.b), a, b))


def by_run(results: dict) -> dict[str, tuple[float, float]]:
    """Return each run's word error rate in %: on clean speech, and the mean over its noisy conditions."""
    found = {}
    for system in results["systems"]:
        spoken = [row for row in system["conditions"] if row["n_words"]]
        clean = [100 * row["wer"] for row in spoken if row["condition"] == "clean"]
        noisy = [100 * row["wer"] for row in spoken if row["condition"] != "clean"]
        found[system["name"].removeprefix("student ")] = (float(np.mean(clean)), float(np.mean(noisy)))
    return found


def table(a: str, b: str, wer_a: np.ndarray, wer_b: np.ndarray) -> str:
    """Return the two ways' WER, ``(seeds, 2)``, their paired difference with a 95% interval, and the t test's p."""
    lines = [f"| WER in %, mean of {len(wer_a)} seeds | {a} | {b} | difference [95%] | p |", "|---|---|---|---|---|"]
    for name, x, y in zip(("clean", "mean over noisy conditions"), wer_a.T, wer_b.T, strict=True):
        mean, low, high = interval(y - x)
        p = stats.ttest_rel(y, x).pvalue
        lines.append(f"| {name} | {x.mean():.2f} | {y.mean():.2f} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] | {p:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
