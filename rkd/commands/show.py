"""`rkd show`: a stage's configuration with where each value comes from, or what a run folder holds."""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rkd.commands.folders import Run, read_run
from rkd.commands.help import STAGES
from rkd.commands.options import Parser
from rkd.console import duration, put, warn
from rkd.errors import ConfigError, RkdError

_COMMENT_COLUMN = 48


def parser() -> Parser:
    """Return the options."""
    made = Parser(
        "show",
        "Print as YAML what a stage would run with, each value with the file that it comes from, below the run\n"
        "folders that it leads to; or the state, error, figures and configuration of a run folder.",
        "examples:\n  rkd show distill student=base\n  rkd show runs/distill/tiny-1a2b3c4d",
    )
    made.add_argument("what", metavar="STAGE|RUNFOLDER", help=" | ".join(STAGES) + ", or a run folder")
    made.add_argument(
        "overrides", nargs="*", default=[], metavar="OVERRIDE", help="group=choice or key=value, after a stage"
    )
    return made


def run(options: argparse.Namespace) -> int:
    """Print a configuration."""
    what, overrides = options.what, options.overrides
    if what in STAGES:
        lines = list(_stage(what, overrides))
    elif Path(what, "status.json").exists():
        if overrides:
            raise ConfigError(f"show {what}: {overrides[0]} has no meaning for a run folder: leave it out")
        lines = list(_run_folder(Path(what)))
    else:
        near = difflib.get_close_matches(what, STAGES, 1, 0.4)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f"show: {what} is neither a stage nor a run folder (no status.json){hint}")
    put("\n".join(lines))
    return 0


def _stage(stage: str, overrides: list[str]) -> Iterator[str]:
    from omegaconf import OmegaConf

    from rkd import config

    tree: Any = OmegaConf.to_container(config.compose(stage, overrides))
    for line in config.unread_overrides(stage, overrides):
        warn(line)
    yield from _header(stage, tree)
    yield from _yaml_lines(tree, config.origins(overrides))


def _header(stage: str, tree: dict[str, Any]) -> Iterator[str]:
    """Yield the run folders as comments, the stage's own last."""
    from rkd.runs import all_steps
    from rkd.stages.plan import Plan

    try:
        steps = all_steps(Plan(tree, stage).targets())
    except RkdError as error:
        warn(f"the run folder is not known yet: {error}")
        return
    for step in steps:
        yield f"# {step.state:12s} {step.folder}"


def _yaml_lines(tree: dict[str, Any], origins: dict[str, Any], above: str = "", depth: int = 0) -> Iterator[str]:
    import yaml

    for name, value in tree.items():
        key, indent = f"{above}{name}", "  " * depth
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, origins, f"{key}.", depth + 1)
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
        line = f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}"
        origin = origins.get(key)
        yield f"{line:{_COMMENT_COLUMN}s}  # {_where(origin)}" if origin else line


def _where(origin: Any) -> str:
    """Return a file as people know it, conf/... for rkd's own, and what is written there in place of a value."""
    from rkd.config import conf_folders

    own = conf_folders()[-1]
    if origin.file is None:
        place = "command line"
    else:
        place = str(origin.file.relative_to(own.parent) if origin.file.is_relative_to(own) else origin.file)
    return f"{place}: {origin.raw}" if "${" in str(origin.raw) else place


def _run_folder(folder: Path) -> Iterator[str]:
    import yaml

    found = read_run(folder)
    yield from (f"# {line}" for line in _facts(found))
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        yield text.rstrip("\n")
        yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        warn(f"{folder / 'config.yaml'} cannot be read ({' '.join(str(error).split())})")


def _facts(found: Run) -> Iterator[str]:
    yield found.folder
    yield f"state: {found.state}"
    if found.started is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.started))
        yield f"started: {at}, {duration(max(0.0, time.time() - found.started))} ago"
    if found.state != "running" and found.seconds:
        yield f"took: {duration(found.seconds)}"
    if found.error:
        yield f"error: {' '.join(found.error.split())}"
    if found.figures:
        yield from (f"{name}: {value:g}" for name, value in found.figures.items() if value is not None)
    try:
        overrides = Path(found.folder, "overrides.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    yield f"overrides: {' '.join(map(_quoted, overrides)) or 'none'}"


def _quoted(override: str) -> str:
    import shlex

    return shlex.quote(override)
