"""The command line: stage words, help, and the boundary where expected errors become one line and an exit code.

Only the standard library is imported until a stage runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rkd.errors import ConfigError, ResourceError, RkdError

STAGES = {
    "prepare": "corpus, noise recordings and rooms, read and checked, to stores on disk",
    "train-teacher": "a large noise-robust model, trained on labels",
    "distill": "a small robust student of that teacher",
    "evaluate": "student, teacher and other systems compared by noise and SNR, as a report",
}

HELP = """\
rkd turns a large speech recogniser into a small one that still works in noise (robust knowledge distillation).

usage: rkd <stage> [group=choice | key=value]...

stages, each of which first builds what it needs and lacks:
{stages}

examples:
  rkd evaluate                                   everything, on a synthetic corpus, without a network or a GPU
  rkd distill student=tiny 'noise.snr=[0,5,10]'  one student that hears noise at 0, 5 and 10 dB

  rkd <stage> --help    groups, choices and most used overrides      rkd --version
  RKD_CONF=folder       more YAML files, first looked for there      RKD_DEBUG=1    tracebacks of errors

The last line on stdout is the folder of the run; everything else goes to stderr.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint or model file, 5 resources (disk, memory, device, hub),
            6 numerics, 75 interrupted and saved: the same command goes on from there"""

# The groups that each stage reads, as they are written on the command line.
GROUPS = {
    "prepare": ("data", "noise", "noise@teacher.noise", "experiment"),
    "train-teacher": ("data", "teacher", "noise@teacher.noise", "experiment"),
    "distill": ("data", "noise", "teacher", "student", "loss", "trainer", "experiment"),
    "evaluate": ("data", "noise", "teacher", "student", "loss", "trainer", "evaluate", "experiment"),
}

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # the reader of our output went away, and with it whoever wanted to know
        _silence()
        return 1
    except KeyboardInterrupt:
        _debug()
        return _fail("interrupted; the same command goes on from what was saved", 75)
    except RkdError as error:
        _debug()
        return _fail(str(error), error.exit_code)
    except Exception as error:
        shortage = _shortage(error)
        if shortage is not None:
            _debug()
            return _fail(shortage, ResourceError.exit_code)
        _traceback()
        return _fail("this is a bug in rkd: please report it with the lines above and the command", 1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        text = HELP.format(stages="\n".join(f"  {name:14s} {what}" for name, what in STAGES.items()))
        print(text, file=sys.stdout if arguments else sys.stderr, flush=True)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from rkd import __version__

        print(f"rkd {__version__}", flush=True)
        return 0
    stage, *overrides = arguments
    if stage not in STAGES:
        raise ConfigError(_unknown_stage(stage))
    if "-h" in overrides or "--help" in overrides:
        print(stage_help(stage), flush=True)
        return 0
    sweep = "-m" in overrides or "--multirun" in overrides
    overrides = [word for word in overrides if word not in ("-m", "--multirun")]
    for option in overrides:
        if option.startswith("-"):
            raise ConfigError(f"unknown option {option}; there is --help, and overrides are key=value without dashes")
    if sweep:
        from rkd.sweep import run

        with _stdout_to_stderr():
            folders, code = run(stage, overrides)
        print(*folders, sep="\n", end="\n" if folders else "", flush=True)
        return code
    with _stdout_to_stderr():
        folder = _run(stage, overrides)
    if os.environ.get("RANK", "0") == "0":
        try:
            print(folder, flush=True)
        except BrokenPipeError:  # nobody reads it; the run is done all the same
            _silence()
    return 0


def _run(stage: str, overrides: list[str]) -> Path:
    from rkd import config
    from rkd.console import warn

    composed = config.compose(stage, overrides)
    for line in config.unread_overrides(stage, overrides):
        warn(line)
    from rkd import stages

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as polite a request as Ctrl-C
    return stages.run(stage, composed, overrides)


def _unknown_stage(word: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, STAGES, 1, 0.4)
    if not near and "=" in word:
        return f"{word} is an override, and a stage comes first: rkd {' | '.join(STAGES)}"
    hint = f"; nearest: {near[0]}" if near else ""
    return f"unknown stage {word}{hint} (there are {', '.join(STAGES)})"


# ---- output and errors ----


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Let whatever libraries and their subprocesses print reach stderr, so that stdout holds the run folder alone."""
    try:
        saved = os.dup(1)
    except OSError:  # started without a stdout
        yield
        return
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _silence() -> None:
    """Send what is still in the buffers nowhere, or the interpreter complains about it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        os.dup2(nowhere, 1 if stream is sys.stdout else 2)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"rkd: {message}", file=sys.stderr, flush=True)
    return code


def _debug() -> None:
    if os.environ.get("RKD_DEBUG", "0") not in ("", "0"):
        _traceback()


def _traceback() -> None:
    import traceback

    traceback.print_exc()


def _shortage(error: Exception) -> str | None:
    """Return what the machine ran out of, in one line, if an error says that it did."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full{where}: free some space, or write elsewhere with root=<folder>"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission{where}: {error.strerror}; root=<folder> writes run folders elsewhere"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return "too many open files: raise the limit with ulimit -n, or set workers=0"
    out_of_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("OutOfMemoryError", "ArrowMemoryError")
        or getattr(error, "errno", None) == errno.ENOMEM
        or "can't allocate memory" in text
        or "CUDA out of memory" in text
    )
    if out_of_memory:
        return f"out of memory ({text[:120]}): smaller batches need less, such as trainer.batch_seconds=40"
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "No space left on device" in text):
        return f"a file could not be written, probably because the disk is full ({text[:120]})"
    return None


# ---- help of a stage, from the YAML files' text ----


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

    from rkd.config.composition import group_files

    files = group_files(key.partition("@")[0])
    if "@" in key:
        return [f"  {key}= (default: {default_of(key)})", "    the same choices as noise"]
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
    from rkd.config.composition import conf_folders

    return conf_folders()
