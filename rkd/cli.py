"""The command line: stages and commands, and the boundary where expected errors become one line and an exit code.

Only the standard library is imported until a stage or a command runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rkd.commands.help import COMMANDS, STAGES, stage_help
from rkd.console import put, stdout_to_stderr
from rkd.errors import ConfigError, ResourceError, RkdError

HELP = """\
rkd turns a large speech recogniser into a small one that still works in noise (robust knowledge distillation).

usage: rkd <stage> [group=choice | key=value]...

stages, each of which first builds what it needs and lacks:
{stages}

beside them:
{commands}

examples:
  rkd evaluate                                   everything, on a synthetic corpus, without a network or a GPU
  rkd distill student=tiny 'noise.snr=[0,5,10]'  one student that hears noise at 0, 5 and 10 dB

  rkd <stage> --help    groups, choices and most used overrides      rkd --version
  rkd <command> --help  its options
  RKD_CONF=folder       more YAML files, first looked for there      RKD_DEBUG=1    tracebacks of errors

The last line on stdout is the folder of the run; everything else goes to stderr.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint or model file, 5 resources (disk, memory, device, hub),
            6 numerics, 75 interrupted and saved: the same command goes on from there"""


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
        if not arguments:
            print(_help(), file=sys.stderr, flush=True)
            return 2
        put(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from rkd import __version__

        put(f"rkd {__version__}")
        return 0
    word, *rest = arguments
    if word in COMMANDS:
        return _command(word, rest)
    if word not in STAGES:
        raise ConfigError(_unknown_word(word))
    return _stage(word, rest)


def _help() -> str:
    def lines(words: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:14s} {what}" for name, what in words.items())

    return HELP.format(stages=lines(STAGES), commands=lines(COMMANDS))


def _command(name: str, arguments: list[str]) -> int:
    command = importlib.import_module(f"rkd.commands.{name}")
    try:
        options = command.parser().parse(arguments)
    except SystemExit:  # argparse has printed its help
        return 0
    return command.run(options)


def _stage(stage: str, overrides: list[str]) -> int:
    if "-h" in overrides or "--help" in overrides:
        put(stage_help(stage))
        return 0
    sweep = "-m" in overrides or "--multirun" in overrides
    overrides = [word for word in overrides if word not in ("-m", "--multirun")]
    for option in overrides:
        if option.startswith("-"):
            raise ConfigError(f"unknown option {option}; there is --help, and overrides are key=value without dashes")
    if sweep:
        from rkd.sweep.jobs import run

        with stdout_to_stderr():
            folders, code = run(stage, overrides)
        if folders:
            put("\n".join(map(str, folders)))
        return code
    with stdout_to_stderr():
        folder = _run(stage, overrides)
    if os.environ.get("RANK", "0") == "0":
        try:
            put(folder)
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
    from rkd.interrupts import stopped_by_signals

    # GNU OpenMP's threads wait by spinning, and where another program wants a core they spin against it: beside a busy
    # loop, a training on two cores made 2 steps a second with the default and 4 with this, alone 9.5 and 9.2.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    with stopped_by_signals():
        return stages.run(stage, composed, overrides)


def _unknown_word(word: str) -> str:
    import difflib

    if "=" in word:
        return f"{word} is an override, and a stage comes first: rkd {' | '.join(STAGES)}"
    near = difflib.get_close_matches(word, [*STAGES, *COMMANDS], 1, 0.4)
    hint = f"; nearest: {near[0]}" if near else ""
    return f"unknown stage {word}{hint} (there are {', '.join(STAGES)}, and {', '.join(COMMANDS)})"


# ---- output and errors ----


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
        if error.errno == errno.EFBIG:
            return f"a file may not grow so large{where}: raise the limit with ulimit -f, or of the file system"
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
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and isinstance(error, RuntimeError) and _lost_process(error):
        return (
            f"another process of this run is gone, or cannot be reached ({text[-120:]}): look for what it said, or "
            "whether it was killed for want of memory; the same command goes on from what was saved"
        )
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "No space left on device" in text):
        return f"a file could not be written, probably because the disk is full ({text[:120]})"
    return None


def _lost_process(error: RuntimeError) -> bool:
    """Say whether an error tells that another process does not answer; gloo's have no type of their own."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "ncclRemoteError")
    return type(error).__name__ == "DistNetworkError" or any(sign in str(error) for sign in signs)
