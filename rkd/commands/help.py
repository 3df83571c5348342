"""The words after `rkd`, and what their help says: read from the YAML files' text, with the standard library alone."""

from __future__ import annotations

import re
from pathlib import Path

STAGES = {
    "prepare": "corpus, noise recordings and rooms, read and checked, to stores on disk",
    "train-teacher": "a large noise-robust model, trained on labels",
    "distill": "a small robust student of that teacher",
    "evaluate": "student, teacher and other systems compared by noise and SNR, as a report",
}

COMMANDS = {
    "ls": "the runs as a table: state, age, error rates",
    "show": "a configuration and where each value comes from, or what is known of a run folder",
    "check": "whether a stage could run here: configuration, files, devices, disk; builds nothing",
    "listen": "some clips clean and noisy, as a training mixes them, with their spectrograms",
    "completion": "a script that completes rkd's command line in bash, zsh or fish",
}

# The groups that each stage reads, as they are written on the command line.
GROUPS = {
    "prepare": ("data", "noise", "noise@teacher.noise", "experiment"),
    "train-teacher": (
        "data", "teacher", "noise@teacher.noise", "effects@teacher.noise.effects", "denoiser@teacher.denoiser",
        "experiment",
    ),
    "distill": ("data", "noise", "effects", "teacher", "student", "denoiser", "loss", "trainer", "experiment"),
    "evaluate": (
        "data", "noise", "effects", "teacher", "student", "denoiser", "loss", "trainer", "evaluate", "experiment",
    ),
}  # fmt: skip

# The ten overrides that people use most. Their defaults are read from the YAML files.
MOST_USED = {
    "prepare": {
        "data": "the corpus",
        "data.n_train": "training utterances of a generated corpus",
        "data.n_test": "test utterances of a generated corpus",
        "data.seed": "of a generated corpus",
        "data.max_seconds": "longer utterances are left out",
        "noise": "the noise of training and evaluation",
        "noise.folder": "recorded noise, with noise=recorded, musan, esc50, ...",
        "noise.split": "file | class | official: what keeps training and test noise apart",
        "noise.rooms": "room impulse responses, or simulated, with noise=reverb, ...",
        "root": "where run folders are written",
    },
    "train-teacher": {
        "data": "the corpus",
        "teacher": "the model",
        "teacher.trainer.steps": "length of the training",
        "teacher.trainer.learning_rate": "at its highest, after the warm-up",
        "teacher.trainer.batch_seconds": "seconds of audio in a batch",
        "teacher.trainer.precision": "auto | fp32 | bf16 | fp16",
        "noise@teacher.noise": "the noise that the teacher hears",
        "teacher.noise.snr": "dB, one is drawn for a clip",
        "teacher.seed": "of the weights, the order and the noise",
        "device": "auto | cpu | cuda",
    },
    "distill": {
        "data": "the corpus",
        "student": "the model",
        "teacher": "what it learns from, trained first if need be",
        "teacher.path": "a finished run or model folder to use as the teacher",
        "noise.snr": "dB, one is drawn for a clip: one run over several SNRs",
        "loss": "what the student learns from the teacher",
        "loss.terms.soft.temperature": "of the soft labels",
        "trainer.steps": "length of the training",
        "trainer.learning_rate": "at its highest, after the warm-up",
        "seed": "of the weights, the order and the noise",
    },
    "evaluate": {
        "student": "the model",
        "teacher": "what it learned from",
        "noise.snr": "dB in training",
        "evaluate.snr": "dB in evaluation",
        "evaluate.systems": "other run or model folders to compare with",
        "evaluate.folder": "recorded noise that no system has heard",
        "evaluate.beams": "1: greedy",
        "evaluate.max_utterances": "of the test split; null: all",
        "seed": "of the student",
        "build": "auto | never: refuse to build what is missing",
    },
}


def stage_help(stage: str) -> str:
    """Return a stage's groups with their choices, and its most used overrides with their defaults."""
    import shutil

    width = max(80, min(120, shutil.get_terminal_size().columns))
    lines = [f"rkd {stage}: {STAGES[stage]}", "", f"usage: rkd {stage} [group=choice | key=value]...", "", "groups:"]
    for key in GROUPS[stage]:
        lines += _group_lines(key, width)
    lines += ["", "most used overrides, with their defaults:"]
    rows = [(f"{key}={default_of(key)}", what) for key, what in MOST_USED[stage].items()]
    column = max(len(override) for override, _ in rows) + 2
    lines += [f"  {override:{column}s}{what}" for override, what in rows]
    lines += ["", "All keys stand in the YAML files of the groups:"]
    return "\n".join([*lines, *(f"  {folder}" for folder in _conf_folders())])


def _group_lines(key: str, width: int) -> list[str]:
    import textwrap

    from rkd.config.folders import group_files

    files = group_files(key.partition("@")[0])
    if "@" in key:
        return [f"  {key}= (default: {default_of(key)})", f"    the same choices as {key.partition('@')[0]}"]
    lines = [f"  {key}= (default: {default_of(key)})"]
    for name, file in files.items():
        lines += textwrap.wrap(summary(file), width, initial_indent=f"    {name:16s} ", subsequent_indent=" " * 21)
    return lines


def summary(file: Path) -> str:
    """Return the first sentence of a YAML file's opening comment."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words.append(line.lstrip("# "))
    end = r"(?<=[a-z)%'])(?<!al)\.\s|\s+rkd (?=prepare|train-teacher|distill|evaluate)"
    return " ".join(re.split(end, " ".join(words) + " ")[0].split())


def default_of(key: str) -> str:
    """Read a key's default from the YAML text: help must not wait for a YAML parser."""
    group = key.removeprefix("teacher.").partition(".")[0] if key.count(".") > 1 else key.partition(".")[0]
    if "@" in key:
        return _find(rf"^ *- /{key.replace('teacher.', '')}: *(\S+)", "teacher/_training.yaml")
    if "." not in key:
        return _find(rf"^(?: *- )?{key}: *(\S+)", "config.yaml")
    last = key.rpartition(".")[2]
    parts = [f"{group}/{file.name}" for folder in _conf_folders() for file in sorted((folder / group).glob("_*.yaml"))]
    chosen = _find(rf"^ *- {group}: *(\S+)", "config.yaml")
    own = ["teacher/_training.yaml"] if key.startswith("teacher.") else []
    pattern = rf"(?:^ *|[{{,] *){last}: *(\[[^]]*\]|[^,}}#\n]*[^,}}#\s])"
    return _find(pattern, *own, f"{group}/{chosen}.yaml", *parts)


def _find(pattern: str, *names: str) -> str:
    for name in names:
        file = next((folder / name for folder in _conf_folders() if (folder / name).is_file()), None)
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE) if file else None
        if found:
            return found.group(1).replace(", ", ",")
    return "?"


def _conf_folders() -> list[Path]:
    from rkd.config.folders import conf_folders

    return conf_folders()
