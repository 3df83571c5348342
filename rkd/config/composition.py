"""From YAML groups and overrides to one tree of plain values, by Hydra, with every mistake a ConfigError."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rkd.config.folders import conf_folders
from rkd.config.keys import check_keys, check_missing, check_values, unknown_key
from rkd.config.overrides import Override, check_groups, parse_override
from rkd.config.tree import expand_home, has, resolve
from rkd.config.words import nearest, one_line
from rkd.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    check_groups(parsed)
    composed, choices = _compose_groups([o for o in parsed if o.is_group])
    tree = expand_home(resolve(_set_values(composed, [o for o in parsed if not o.is_group]), ""))
    check_keys(tree, parsed, choices)
    check_missing(tree, stage)
    check_values(tree)
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
        if isinstance(value, dict) and value:
            for name, below in value.items():
                write(f"{key}.{name}".lstrip("."), below, file)
        else:
            found[key] = Origin(file, value)

    for name, package in _yaml_files(tuple(o.text for o in parsed if o.is_group), _conf_key()):
        file = next(f for folder in conf_folders() if (f := folder / f"{name}.yaml").is_file())
        node = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        node.pop("defaults", None)
        write(package, node, file)
    for o in parsed:
        if not o.is_group and o.sign != "~":
            write(o.key, o.value, None)
    return found


def _conf_key() -> tuple[str, ...]:
    return tuple(map(str, conf_folders()))


class _Composition(NamedTuple):
    """Hydra's composition of config.yaml, and the choice made in each group."""

    tree: DictConfig
    choices: dict[str, str | None]


@functools.lru_cache(maxsize=8)
def _compose_hydra(overrides: tuple[str, ...], folders: tuple[str, ...]) -> _Composition:
    import hydra
    from omegaconf import OmegaConf, open_dict

    with _searching(folders):
        composed = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    assert isinstance(choices, dict)
    return _Composition(composed, {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")})


@functools.lru_cache(maxsize=8)
def _yaml_files(overrides: tuple[str, ...], folders: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return name and key of each YAML file of a composition, in Hydra's order."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with _searching(folders):
        defaults = GlobalHydra.instance().config_loader().compute_defaults_list("config", list(overrides), RunMode.RUN)
    names = [(d.config_path or "", d.package or "") for d in defaults.defaults]
    return [(name, key) for name, key in names if not name.startswith("hydra/")]


def _searching(folders: Sequence[str]) -> AbstractContextManager[Any]:
    """Let Hydra look in folders, the users' first."""
    import hydra

    *users, own = folders
    _search_first(users)
    return hydra.initialize_config_dir(own, job_name="rkd", version_base="1.3")


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
        raise ConfigError(f"a YAML file cannot be read: {one_line(error)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        if texts:
            choices = _compose_groups(()).choices
            for o in overrides:
                _check_choice_key(o, choices)
        raise ConfigError(f"cannot compose {' '.join(texts)}: {one_line(error)}") from error


def _set_values(composed: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Return the composition with values set as Hydra would, which needs a second composition to say what is wrong."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    changed = copy.deepcopy(composed)
    for o in overrides:
        if o.sign in ("", "~") and not has(OmegaConf.to_container(changed), o.key):  # type: ignore[arg-type]
            raise ConfigError(unknown_key(o.key, resolve(changed, "")))
        if o.sign == "~":
            parent, _, last = o.key.rpartition(".")
            node = OmegaConf.select(changed, parent) if parent else changed
            with open_dict(node):
                del node[last]
            continue
        try:
            OmegaConf.update(changed, o.key, o.value, force_add=bool(o.sign))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{o.text}: {one_line(error).partition(' full_key')[0]}") from error
    return changed


def _check_choice_key(o: Override, choices: dict[str, Any]) -> None:
    if o.is_group and o.group_key not in choices and not o.sign:
        keys = [k for k in choices if not k.startswith("shape")]
        raise ConfigError(f"{o.text}: there is no {o.group_key}; nearest: {nearest(o.group_key, keys)}={o.value}")
    if o.is_group and o.sign in ("+", "++") and o.group_key in choices:
        raise ConfigError(f"{o.text}: {o.group_key} is there already, write {o.group_key}={o.value}, without {o.sign}")
