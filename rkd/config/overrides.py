"""The overrides of a command line: read, checked against the groups, and told apart by what a stage reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rkd.config.folders import conf_folders, group_files, groups
from rkd.config.reads import STAGE_READS, reads
from rkd.config.schema import rule_for
from rkd.config.words import nearest, show
from rkd.errors import ConfigError

# A path from the home folder, which Hydra's grammar takes in quotes alone; `compose` puts the folder in the ~'s place.
_HOME = re.compile(r"(?<=[=,\[])~(/[^,\[\]{}'\"]*)?(?=[,\]]|$)")


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, whole ones where the ends are; ``log``: as likely in each octave."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class Override:
    """One argument of the command line: `[+|++|~]key[@package]=value`."""

    text: str
    sign: str
    key: str
    package: str | None
    value: Any
    values: tuple[str, ...] = ()  # of a sweep
    interval: Interval | None = None  # of a search

    @property
    def written(self) -> str:
        """What stands before the equals sign."""
        return self.text.partition("=")[0]

    @property
    def group_key(self) -> str:
        return self.key if self.package is None else f"{self.key}@{self.package}"

    @property
    def is_group(self) -> bool:
        return self.package is not None or self.key in groups()

    @property
    def path(self) -> str:
        """The dotted key that is changed."""
        return self.key if self.package is None else self.package


def parse_override(text: str, sweep: bool = False) -> Override:
    """Parse an override; ConfigError for what is no override, and unless ``sweep`` for one that names several runs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(_HOME.sub(r"'\g<0>'", text))
    except HydraException as error:
        raise ConfigError(_explain_syntax(text)) from error
    values: tuple[str, ...] = ()
    interval = None
    if parsed.is_interval_sweep() and sweep:
        found = parsed.value()
        assert isinstance(found, IntervalSweep) and found.start is not None and found.end is not None
        if not found.start < found.end:
            raise ConfigError(f"{text}: an interval goes from the lower to the higher end")
        interval = Interval(found.start, found.end, "log" in found.tags)
    elif parsed.is_sweep_override():
        if not sweep:
            raise ConfigError(f"{text} names several runs, and a run takes one value: make them all with -m, or, for "
                              f"a list, write {parsed.key_or_group}=[{text.partition('=')[2]}]")  # fmt: skip
        try:
            values = tuple(parsed.sweep_string_iterator())
        except HydraException as error:
            raise ConfigError(f"{text}: name the values, as in {parsed.key_or_group}=a,b") from error
    sign = re.match(r"\+\+|\+|~|", text)
    key = parsed.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{text}: rkd writes its own run folders and has no hydra keys; root=... moves them")
    value = None if values or interval else parsed.value()
    return Override(text, sign.group() if sign else "", key, parsed.package, value, values, interval)


def _explain_syntax(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"cannot read {text!r}: an override is key=value or group=choice, without spaces"
    if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
        return (
            f"cannot read {text!r}: the brackets do not match; write lists without spaces, or quote it: '{key}=[0,5]'"
        )
    return f"cannot read {text!r}: put the value in double quotes, and all of it in single ones: '{key}=\"{value}\"'"


def check_groups(overrides: Sequence[Override]) -> None:
    chosen: dict[str, str] = {}
    for o in overrides:
        if not o.is_group:
            continue
        if chosen.get(o.group_key, o.text) != o.text:
            raise ConfigError(f"{chosen[o.group_key]} {o.text}: {o.group_key} is chosen twice; leave one out")
        chosen[o.group_key] = o.text
        if o.key not in groups():
            near = nearest(o.key, groups())
            raise ConfigError(f"{o.text}: there is no group {o.key}; nearest: {near}")
        if o.sign == "~":
            if o.group_key != "experiment":
                raise ConfigError(
                    f"{o.text}: rkd needs a choice of {o.key}; choose one of {', '.join(group_files(o.key))}"
                )
            continue
        files = group_files(o.key)
        parts = {f.stem for folder in conf_folders() for f in (folder / o.key).glob("*.yaml")}
        if isinstance(o.value, dict):  # Hydra merges it, like keys one by one
            raise ConfigError(f"{o.text}: a group takes a choice; set its keys as {o.path}.<key>=...")
        if o.value is None and o.key == "experiment":
            continue
        several = o.key in ("experiment", "effects") and isinstance(o.value, list)
        if several and len(set(map(str, o.value))) < len(o.value):
            raise ConfigError(f"{o.text}: a choice is there twice; {o.key} takes each once")
        for choice in o.value if several else [o.value]:
            if not isinstance(choice, str) or (choice not in files and choice not in parts):
                near = nearest(str(choice), list(files))
                hint = f"; nearest: {near}" if near else ""
                raise ConfigError(f"{o.text}: {o.key} has no choice {show(choice)}{hint}\nchoices: {', '.join(files)}")


def unread_overrides(stage: str, overrides: Sequence[str]) -> list[str]:
    """Return a line for every override that the stage does not read, with what would do it instead."""
    messages = []
    for o in map(parse_override, overrides):
        if reads(stage, o.path):
            continue
        instead = _instead(stage, o)
        messages.append(f"{stage} does not read {o.group_key}; {instead} would do it")
    return messages


def _instead(stage: str, o: Override) -> str:
    if stage == "train-teacher":
        if o.key == "student" and o.is_group:
            return f"teacher={o.value}" if o.value in group_files("teacher") else "teacher=..."
        if o.is_group and o.package is None and o.key in ("noise", "denoiser", "trainer"):
            return f"{o.key}@teacher.{o.key}={o.value}"
        teacher_key = "teacher." + o.key.removeprefix("student.")
        if rule_for(teacher_key) is not None or teacher_key.startswith(("teacher.loss.terms.", "teacher.noise.types.")):
            return teacher_key
    later = list(STAGE_READS)[list(STAGE_READS).index(stage) :]
    return "rkd " + next((s for s in later if reads(s, o.path)), "evaluate")
