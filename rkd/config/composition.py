"""From YAML groups and overrides to one tree of plain values, by Hydra, with every mistake a ConfigError."""

from __future__ import annotations

import copy
import difflib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rkd.config.schema import FREE, REQUIRED, SCHEMA, STAGE_READS, is_trained, reads, rule_for
from rkd.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

GROUPS = ("data", "noise", "teacher", "student", "loss", "trainer", "evaluate", "launcher", "experiment")
# Other names that people know from elsewhere.
ALIASES = {
    "lr": "learning_rate", "epochs": "steps", "max_steps": "steps", "batch_size": "batch_seconds", "fp16": "precision",
    "grad_clip": "clip_norm", "snr_db": "snr", "num_workers": "workers", "gpu": "device",
}  # fmt: skip


def conf_folders() -> list[Path]:
    """Return the folders of YAML groups, first wins: those in RKD_CONF, then rkd's own."""
    package = Path(__file__).resolve().parents[1]
    own = next((f for f in (package / "conf", package.parent / "conf") if (f / "config.yaml").is_file()), None)
    if own is None:
        raise ConfigError(f"rkd's own YAML files are missing beside {package}: install rkd again")
    users = [Path(f).expanduser().absolute() for f in os.environ.get("RKD_CONF", "").split(os.pathsep) if f]
    for folder in users:
        if not folder.is_dir():
            raise ConfigError(f"RKD_CONF names {folder}, which is not a folder")
    return [*users, own]


def group_files(group: str) -> dict[str, Path]:
    """Return a group's choices, sorted, and the file of each; names that start with `_` are parts, not choices."""
    files: dict[str, Path] = {}
    for folder in conf_folders():
        for file in (folder / group).glob("*.yaml"):
            if not file.name.startswith("_"):
                files.setdefault(file.stem, file)
    return dict(sorted(files.items()))


def compose(stage: str, overrides: Sequence[str]) -> DictConfig:
    """Compose and check the configuration of a stage.

    Args:
        stage: prepare, train-teacher, distill or evaluate.
        overrides: group=choice, group@package=choice, key=value, +key=value, ~key.

    Returns:
        The tree, its interpolations resolved; a `???` is left only where the stage does not read it.

    Raises:
        ConfigError: in one or two lines what is wrong, the nearest valid key or choice, and the allowed values.
    """
    from omegaconf import OmegaConf

    from rkd.config.checks import check_fit

    parsed = [parse_override(text) for text in overrides]
    _check_groups(parsed)
    composed, choices, _ = _compose_groups([o for o in parsed if o.is_group])
    tree = _resolve(_set_values(composed, [o for o in parsed if not o.is_group]), "")
    _check_keys(tree, parsed, choices)
    _check_missing(tree, stage)
    _check_values(tree)
    check_fit(tree, stage, parsed)
    config = OmegaConf.create(tree)
    OmegaConf.set_struct(config, True)
    return config


def group_choices(overrides: Sequence[str]) -> dict[str, str | None]:
    """Return the choice made in each group, such as {"student": "tiny", "noise@teacher.noise": "generated", ...}."""
    return dict(_compose_groups([o for o in map(parse_override, overrides) if o.is_group]).choices)


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a YAML file, or None for the command line; and how, before interpolation."""

    file: Path | None
    raw: Any


def origins(overrides: Sequence[str]) -> dict[str, Origin]:
    """Return by dotted key where each value of a composition comes from; the overrides must be valid."""
    import yaml

    parsed = [parse_override(text) for text in overrides]
    found: dict[str, Origin] = {}

    def write(key: str, value: Any, file: Path | None) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                write(f"{key}.{name}".lstrip("."), below, file)
        else:
            found[key] = Origin(file, value)

    for name, package in _compose_groups([o for o in parsed if o.is_group]).parts:
        file = next(f for folder in conf_folders() if (f := folder / f"{name}.yaml").is_file())
        node = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        node.pop("defaults", None)
        write(package, node, file)
    for o in parsed:
        if not o.is_group and o.sign != "~":
            write(o.key, o.value, None)
    return found


# ---- overrides ----


@dataclass(frozen=True)
class Override:
    """One argument of the command line: `[+|++|~]key[@package]=value`."""

    text: str
    sign: str
    key: str
    package: str | None
    value: Any
    values: tuple[str, ...] = ()  # of a sweep

    @property
    def written(self) -> str:
        """What stands before the equals sign."""
        return self.text.partition("=")[0]

    @property
    def group_key(self) -> str:
        return self.key if self.package is None else f"{self.key}@{self.package}"

    @property
    def is_group(self) -> bool:
        return self.package is not None or self.key in _groups()

    @property
    def path(self) -> str:
        """The dotted key that is changed."""
        return self.key if self.package is None else self.package


def parse_override(text: str, sweep: bool = False) -> Override:
    """Parse an override; ConfigError for what is no override, and unless ``sweep`` for one that names several runs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(_explain_syntax(text)) from error
    values: tuple[str, ...] = ()
    if parsed.is_sweep_override():
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
    value = None if values else parsed.value()
    return Override(text, sign.group() if sign else "", key, parsed.package, value, values)


def _explain_syntax(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"cannot read {text!r}: an override is key=value or group=choice, without spaces"
    if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
        return (
            f"cannot read {text!r}: the brackets do not match; write lists without spaces, or quote it: '{key}=[0,5]'"
        )
    return f"cannot read {text!r}: put the value in double quotes, and all of it in single ones: '{key}=\"{value}\"'"


def _groups() -> list[str]:
    own = {f.name for folder in conf_folders() for f in folder.iterdir() if f.is_dir() and any(f.glob("*.yaml"))}
    return [g for g in GROUPS if g in own] + sorted(own - set(GROUPS))


def _check_groups(overrides: Sequence[Override]) -> None:
    for o in overrides:
        if not o.is_group:
            continue
        if o.key not in _groups():
            near = nearest(o.key, _groups())
            raise ConfigError(f"{o.text}: there is no group {o.key}; nearest: {near}")
        if o.sign == "~":
            if o.group_key != "experiment":
                raise ConfigError(f"{o.text}: rkd needs a choice of {o.key}; choose one of {_list(group_files(o.key))}")
            continue
        files = group_files(o.key)
        parts = {f.stem for folder in conf_folders() for f in (folder / o.key).glob("*.yaml")}
        if isinstance(o.value, dict):  # Hydra merges it, like keys one by one
            raise ConfigError(f"{o.text}: a group takes a choice; set its keys as {o.path}.<key>=...")
        if o.value is None and o.key == "experiment":
            continue
        if not isinstance(o.value, str) or (o.value not in files and o.value not in parts):
            near = nearest(str(o.value), list(files))
            hint = f"; nearest: {near}" if near else ""
            raise ConfigError(f"{o.text}: {o.key} has no choice {_show(o.value)}{hint}\nchoices: {_list(files)}")


# ---- Hydra ----


def _conf_key() -> tuple[str, ...]:
    return tuple(map(str, conf_folders()))


class _Composition(NamedTuple):
    """Hydra's composition of config.yaml, the choice made in each group, and (file, key) of each YAML in its order."""

    tree: DictConfig
    choices: dict[str, str | None]
    parts: list[tuple[str, str]]


@functools.lru_cache(maxsize=8)
def _compose_hydra(overrides: tuple[str, ...], folders: tuple[str, ...]) -> _Composition:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    *users, own = folders
    _search_first(users)
    with hydra.initialize_config_dir(own, job_name="rkd", version_base="1.3"):
        composed = hydra.compose("config", list(overrides), return_hydra_config=True)
        defaults = GlobalHydra.instance().config_loader().compute_defaults_list("config", list(overrides), RunMode.RUN)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    assert isinstance(choices, dict)
    parts = [(d.config_path or "", d.package or "") for d in defaults.defaults]
    return _Composition(
        composed,
        {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")},
        [part for part in parts if not part[0].startswith("hydra/")],
    )


def _search_first(folders: Sequence[str]) -> None:
    """Make Hydra look in the user's folders before rkd's own."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserFolders(SearchPathPlugin):
        users: tuple[str, ...] = ()

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in reversed(self.users):
                search_path.prepend("RKD_CONF", f"file://{folder}")

    plugins = Plugins.instance()
    known = next((p for p in plugins.discover(SearchPathPlugin) if p.__name__ == "UserFolders"), None)
    if known is None:
        plugins.register(UserFolders)
        known = UserFolders
    known.users = tuple(folders)  # type: ignore[attr-defined]


def _compose_groups(overrides: Sequence[Override]) -> _Composition:
    """Compose the choices; where Hydra refuses, find the override that is at fault and say what would be right."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    texts = tuple(o.text for o in overrides)
    try:
        return _compose_hydra(texts, _conf_key())
    except YAMLError as error:
        raise ConfigError(f"a YAML file cannot be read: {_one_line(error)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        if texts:
            choices = _compose_groups(()).choices
            for o in overrides:
                _check_choice_key(o, choices)
        raise ConfigError(f"cannot compose {' '.join(texts)}: {_one_line(error)}") from error


def _set_values(composed: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Return the composition with values set as Hydra would, which needs a second composition to say what is wrong."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    changed = copy.deepcopy(composed)
    for o in overrides:
        if o.sign in ("", "~") and not has(OmegaConf.to_container(changed), o.key):  # type: ignore[arg-type]
            raise ConfigError(_unknown_key(o.key, _resolve(changed, "")))
        if o.sign == "~":
            parent, _, last = o.key.rpartition(".")
            node = OmegaConf.select(changed, parent) if parent else changed
            with open_dict(node):
                del node[last]
            continue
        try:
            OmegaConf.update(changed, o.key, o.value, force_add=bool(o.sign))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{o.text}: {_one_line(error).partition(' full_key')[0]}") from error
    return changed


def _check_choice_key(o: Override, choices: dict[str, Any]) -> None:
    if o.is_group and o.group_key not in choices and not o.sign:
        keys = [k for k in choices if not k.startswith("shape")]
        raise ConfigError(f"{o.text}: there is no {o.group_key}; nearest: {nearest(o.group_key, keys)}={o.value}")
    if o.is_group and o.sign in ("+", "++") and o.group_key in choices:
        raise ConfigError(f"{o.text}: {o.group_key} is there already, write {o.group_key}={o.value}, without {o.sign}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# ---- from Hydra's tree to plain values ----


def _resolve(node: Any, prefix: str) -> Any:
    """Return plain dicts and lists with interpolations resolved; missing values, and what points at one, stay `???`."""
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    def value_of(key: Any) -> Any:
        path = f"{prefix}.{key}" if prefix else str(key)
        if OmegaConf.is_missing(node, key):
            return "???"
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            return "???"
        except OmegaConfBaseException as error:
            raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index, call-overload]
            raise ConfigError(
                f"{path}={raw} cannot be resolved: {_one_line(error).partition(' full_key')[0]}"
            ) from error
        return _resolve(value, path)

    if isinstance(node, DictConfig):
        return {str(key): value_of(key) for key in node}
    if isinstance(node, ListConfig):
        return [value_of(i) for i in range(len(node))]
    return node


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its value; a list is one value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def select(tree: dict[str, Any], key: str) -> Any:
    """Return the value at a dotted key, None where there is none."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


def has(tree: dict[str, Any], key: str) -> bool:
    """Say whether there is a dotted key, whatever its value."""
    parent, _, last = key.rpartition(".")
    node = select(tree, parent) if parent else tree
    return isinstance(node, dict) and last in node


# ---- checks of keys and values ----


def _check_keys(tree: dict[str, Any], overrides: Sequence[Override], choices: dict[str, Any]) -> None:
    for o in overrides:
        group = next((k for k in choices if k.endswith("@" + o.key)), None)
        if group and not o.is_group and isinstance(o.value, str):
            raise ConfigError(f"{o.text}: to choose what stands at {o.key}, write {group}={o.value}")
        if o.sign == "~" and not o.is_group and not o.key.startswith(FREE):
            raise ConfigError(f"{o.text}: {o.key} cannot be left out; set it to a value")
    for key, value in leaves(tree):
        if rule_for(key) is not None:
            continue
        if _has_rules_below(key):
            raise ConfigError(f"{key}={_show(value)}: {key} has keys of its own: set {key}.<key>=...")
        above = _target_above(tree, key) if key.startswith(FREE) else None
        group_within = key.startswith(("teacher.noise.", "teacher.trainer.", "teacher.loss."))
        if above is None or (above == "teacher" and group_within):
            raise ConfigError(_unknown_key(key, tree))
    for key in REQUIRED:
        if not has(tree, key):
            group = key.partition(".")[0]
            part = {"noise": "_common", "loss": "_common"}.get(group, "another choice of the group")
            raise ConfigError(f"{key} is missing from the YAML that was chosen for {group}: let its defaults start "
                              f"from {part}")  # fmt: skip


def _has_rules_below(key: str) -> bool:
    if key in ("noise.types", "teacher.noise.types", "evaluate.types", "loss.terms", "teacher.loss.terms"):
        return True
    return any(k.startswith(key + ".") for k in SCHEMA) or rule_for(f"{key}._target_") is not None


def _target_above(tree: dict[str, Any], key: str) -> str | None:
    """Return the key of the nearest node above that has a `_target_`."""
    parent = key.rpartition(".")[0]
    while parent:
        if has(tree, f"{parent}._target_"):
            return parent
        parent = parent.rpartition(".")[0]
    return None


def _unknown_key(key: str, tree: dict[str, Any]) -> str:
    group, _, rest = key.partition(".")
    if others := _choices_with(key, tree):
        return f"{key} is no key of the {group} that was chosen; it needs {' or '.join(f'{group}={o}' for o in others)}"
    known = [k for k, _ in leaves(tree) if k != key]
    inside = [k for k in known if k.startswith(group + ".")]
    near = nearest_key(key, inside if rest and inside else [*known, *_groups(), "noise@teacher.noise"])
    if near is None:
        there = list(tree)
        for above in inside and [key.rpartition(".")[0], group]:
            there = [k for k in select(tree, above) or () if f"{above}.{k}" != key and not k.startswith("_")]
            if there:
                return f"unknown key {key}; {above} has {_list(there)}"
        return f"unknown key {key}; the root has {_list(there)}"
    rule = rule_for(near)
    if rule is not None:
        allowed = f" ({rule})"
    else:
        allowed = f" ({' | '.join(group_files(near))})" if near in _groups() else ""
    return f"unknown key {key}; nearest: {near}{allowed}"


def _choices_with(key: str, tree: dict[str, Any]) -> list[str]:
    """Return the group's choices whose YAML has the first part of a dotted key that the tree lacks."""
    parts = key.split(".")
    depth = next((i for i in range(2, len(parts) + 1) if not has(tree, ".".join(parts[:i]))), None)
    if depth is None:
        return []
    line = re.compile(rf"^ {{{2 * (depth - 2)}}}{re.escape(parts[depth - 1])}:", re.MULTILINE)
    return [name for name, file in group_files(parts[0]).items() if line.search(file.read_text(encoding="utf-8"))]


def _check_values(tree: dict[str, Any]) -> None:
    for key, value in leaves(tree):
        rule = rule_for(key)
        if rule is None or value == "???" or rule.allows(value):
            continue
        words = getattr(rule, "words", ())
        near = nearest(str(value), list(words)) if words else None
        raise ConfigError(f"{key}={_show(value)}: allowed: {rule}" + (f"; nearest: {near}" if near else ""))


def _check_missing(tree: dict[str, Any], stage: str) -> None:
    trained = is_trained(tree["teacher"])
    missing = [
        key
        for key, value in leaves(tree)
        if (value == "???" or (isinstance(value, list) and "???" in value))
        and reads(stage, key)
        and (trained or not key.startswith(("teacher.noise.", "teacher.trainer.", "teacher.loss.")))
    ]
    if missing:
        # `noise.types.recorded.folder` takes its value from `noise.folder`: name the key that people set.
        first = min(missing, key=lambda key: key.count("."))
        raise ConfigError(f"{stage} needs {first}: set {first}=...")


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def _list(names: Any) -> str:
    return ", ".join(names)


def nearest(word: str, words: Sequence[str]) -> str | None:
    """Return the most similar word, if any is at all."""
    return next(iter(difflib.get_close_matches(word, words, 1, 0.4)), None)


def nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """Return the most similar key, by the whole and by the last part, which may be known under another name."""
    last = key.rpartition(".")[2]
    last = ALIASES.get(last, last)
    key = f"{key.rpartition('.')[0]}.{last}".lstrip(".")

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        return whole + difflib.SequenceMatcher(None, last, other.rpartition(".")[2]).ratio()

    best = max(keys, key=likeness, default=None)
    return best if best is not None and likeness(best) > 1.0 else None


# ---- what a stage reads ----


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
        if o.is_group and o.package is None and o.key in ("noise", "trainer"):
            return f"{o.key}@teacher.{o.key}={o.value}"
        teacher_key = "teacher." + o.key.removeprefix("student.")
        if rule_for(teacher_key) is not None or teacher_key.startswith(("teacher.loss.terms.", "teacher.noise.types.")):
            return teacher_key
    later = list(STAGE_READS)[list(STAGE_READS).index(stage) :]
    return "rkd " + next((s for s in later if reads(s, o.path)), "evaluate")
