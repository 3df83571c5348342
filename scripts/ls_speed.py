"""Time `rkd ls` over many runs: makes them in a temporary folder, in the sizes of real ones, and lists them.

python scripts/ls_speed.py --runs 1000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The files of a result, whose sizes are looked at.
MODEL = [f"model/{name}" for name in (
    "config.json", "generation_config.json", "model.safetensors", "ctc_head.safetensors", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "rkd.json",
)]  # fmt: skip
RESULTS = {
    "prepare": ["part-00000.arrow", "part-00000.rejected.jsonl", "rejected.jsonl"],
    "evaluate": ["report.html", "utterances.parquet"],
    "train-teacher": MODEL,
    "distill": MODEL,
}
STAGES = ("prepare", "train-teacher", "distill", "distill", "distill", "evaluate")


def make_run(root: Path, number: int) -> None:
    """Write what `rkd ls` reads of a finished run, in the size of a default one."""
    stage = STAGES[number % len(STAGES)]
    folder = root / stage / f"tiny-{number:08x}"
    folder.mkdir(parents=True)
    for file in RESULTS[stage]:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("x")
    status = {"state": "done", "error": None, "fingerprint": "0" * 64, "started": 1.7e9 + number, "seconds": 100.0,
              "files": dict.fromkeys(RESULTS[stage], 1)}  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status))
    filler = "".join(f"key{i}:\n  some: value\n" for i in range(150))
    (folder / "config.yaml").write_text(f"{filler}teacher:\n  trainer:\n    steps: 2000\ntrainer:\n  steps: 2000\n")
    if stage == "prepare":
        split = {"utterances": 1000, "hours": 1.0, "words": 4000, "speakers": 9}
        (folder / "summary.json").write_text(json.dumps({"has_text": True, "splits": {"train": split}}))
    elif stage == "evaluate":
        condition = {"condition": "noise", "noise": "white", "snr_db": 5, "wer": 0.5, "wer_ci": [0.4, 0.6], "cer": 0.3,
                     "n_utterances": 600, "n_words": 2400, "pesq": 1.2, "stoi": 0.9, "si_sdr": 5.0}  # fmt: skip
        conditions = [condition] * 24 + [{**condition, "condition": "clean"}]
        systems = [{"name": role, "role": role, "conditions": conditions} for role in ("teacher", "student")]
        (folder / "results.json").write_text(json.dumps({"systems": systems, "config": "x" * 6000}, indent=2))
    else:
        loss = {"step": 1, "learning_rate": 1e-3, "loss": {"labels": 1.23456789, "ctc": 1.23456789, "soft": 1.23456789}}
        lines = [loss | {"step": 50 * i} for i in range(1, 41)]
        lines += [{"step": 2000, "validation_wer": 0.25, "best": True}] * 8
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    source = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as root:
        for number in range(options.runs):
            make_run(Path(root), number)
        for output in ("tab-separated", "json"):
            command = [sys.executable, "-m", "rkd", "ls", root] + ["--json"] * (output == "json")
            seconds = []
            for _ in range(options.repeat):
                started = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": source})
                seconds.append(time.perf_counter() - started)
            print(f"{options.runs} runs, {output}: {min(seconds):.3f} s at best, {max(seconds):.3f} s at worst")


if __name__ == "__main__":
    main()
