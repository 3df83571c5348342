"""The classes that `_target_` names: found and checked in their source without importing it, and built."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkd.errors import ConfigError

_IMPORTS = 8  # from module to module, before a name counts as one that takes anything


@dataclass(frozen=True)
class Found:
    """What the source says of a class: the arguments of its constructor, or None where it takes or may take any."""

    arguments: tuple[str, ...] | None


@dataclass(frozen=True)
class _Imported:
    """A name that a module imports, from another module of its package where that is known."""

    module: str | None
    name: str


def check_target(target: str, key: str, trust: Sequence[str], given: Iterable[str], kept: Iterable[str] = ()) -> None:
    """Raise ConfigError unless a class is trusted, exists, and its constructor takes what it will be given.

    Args:
        given: arguments that the class will be given.
        kept: keys beside them that rkd reads itself, so that the class will not be given them.
    """
    check_trusted(target, key, trust)
    found = find_class(target, key)
    unknown = [] if found.arguments is None else [name for name in given if name not in found.arguments]
    if unknown:
        takes = ", ".join(found.arguments or ()) or "nothing"
        raise ConfigError(f"{key}.{unknown[0]}: {target} has no argument {unknown[0]}; it takes {takes}")
    if taken := [name for name in kept if name in (found.arguments or ())]:
        raise ConfigError(f"{key}.{taken[0]} is read by rkd itself and not given to {target}: leave the argument out "
                          "of its __init__, or give it another name")  # fmt: skip


def is_trusted(target: str, trust: Sequence[str]) -> bool:
    """Say whether a target lies in rkd or in a package that the user named."""
    return target.split(".")[0] in ("rkd", *trust)


def check_trusted(target: str, key: str, trust: Sequence[str]) -> None:
    """Raise ConfigError unless a target is trusted."""
    package = target.split(".")[0]
    if not is_trusted(target, trust):
        raise ConfigError(
            f"{key}._target_={target}".lstrip(".")
            + f" lies outside rkd: if you trust that package to run code here, add trust=[{package}]"
        )


def find_class(target: str, key: str) -> Found:
    """Find the class `package.module.Class` in its source; ConfigError where the module or the class does not exist."""
    module, _, name = target.rpartition(".")
    source = _source_of(module)
    if source is None:
        raise ConfigError(f"{key}._target_={target}: there is no module {module}")
    if source.suffix != ".py":  # compiled: nothing to read before it is imported
        return Found(None)
    names = _names(source)
    if name not in names:
        import difflib

        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"; nearest: {module}.{near[0]}" if near else ""
        raise ConfigError(f"{key}._target_={target}: {module} has no {name}{hint}")
    return Found(_takes(names[name]))


def _takes(found: tuple[str, ...] | _Imported | None) -> tuple[str, ...] | None:
    """Return the arguments behind a name of a module, followed to where it is defined."""
    for _ in range(_IMPORTS):
        if not isinstance(found, _Imported):
            return found
        source = _source_of(found.module) if found.module else None
        found = _names(source).get(found.name) if source is not None and source.suffix == ".py" else None
    return None


def find_package(name: str) -> bool:
    """Say whether a package can be imported, from the current folder too."""
    if os.getcwd() not in sys.path:  # last, so that it hides nothing; workers inherit it
        sys.path.append(os.getcwd())
    return _source_of(name) is not None


def _source_of(module: str) -> Path | None:
    """Return the file of a dotted module without importing it or its parents."""
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for file in (base.with_name(base.name + ".py"), base / "__init__.py"):
            if file.is_file():
                return file
        compiled = sorted(base.parent.glob(base.name + ".*.so"))
        if compiled:
            return compiled[0]
    return None


@functools.cache
def _names(source: Path) -> dict[str, tuple[str, ...] | _Imported | None]:
    """Map the classes, functions and imported names of a module to the arguments that they take, None for any."""
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    names: dict[str, tuple[str, ...] | _Imported | None] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = node.module if isinstance(node, ast.ImportFrom) and node.level == 0 else None
            names |= {alias.asname or alias.name: _Imported(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = _arguments(node)
        elif isinstance(node, ast.ClassDef):
            names[node.name] = _constructor(node, names)
    return names


def _constructor(
    node: ast.ClassDef, names: Mapping[str, tuple[str, ...] | _Imported | None]
) -> tuple[str, ...] | _Imported | None:
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        arguments = _arguments(init)
        return None if arguments is None else arguments[1:]
    bases = [ast.unparse(base).removeprefix("nn.") for base in node.bases]
    bases = [base for base in bases if base not in ("Module", "Protocol", "object")]  # their constructors take nothing
    inherited = names.get(bases[0]) if len(bases) == 1 else None
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        own = tuple(n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))
        before = _takes(inherited)
        return own if not bases else None if before is None else before + own
    return inherited if bases else ()


def _arguments(function: ast.FunctionDef) -> tuple[str, ...] | None:
    a = function.args
    return None if a.kwarg else tuple(arg.arg for arg in a.posonlyargs + a.args + a.kwonlyargs)


def load_class(target: str, trust: Sequence[str]) -> Any:
    """Import the class `package.module.Class`.

    Raises:
        ConfigError: it is untrusted or missing.
    """
    check_trusted(target, "", trust)
    module, _, name = target.rpartition(".")
    try:
        build = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module is there, but imports something that is not
        raise ConfigError(f"_target_={target}: there is no module {module}") from error
    except AttributeError as error:
        raise ConfigError(f"_target_={target}: {module} has no {name}") from error
    check_trusted(f"{getattr(build, '__module__', '')}.{name}", "", trust)
    return build


def instantiate(node: Any, trust: Sequence[str], **extra: Any) -> Any:
    """Build the object that a node with `_target_` describes, nested ones first.

    Args:
        node: mapping of `_target_` and the constructor's arguments.
        trust: packages, besides rkd, whose classes may be named.
        extra: arguments that come from the program instead of the configuration; they go before the node's own.

    Raises:
        ConfigError: an untrusted or missing class, or arguments that do not fit its constructor.
    """
    if hasattr(node, "_get_root"):  # a DictConfig
        from omegaconf import OmegaConf

        node = OmegaConf.to_container(node, resolve=True)
    target = node["_target_"]
    build = load_class(target, trust)
    arguments = {key: _build_nested(value, trust) for key, value in node.items() if key != "_target_"} | extra
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{target}: {error}; it takes {inspect.signature(build)}") from error
    return build(**arguments)


def _build_nested(value: Any, trust: Sequence[str]) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return instantiate(value, trust)
        return {key: _build_nested(v, trust) for key, v in value.items()}
    if isinstance(value, list):
        return [_build_nested(v, trust) for v in value]
    return value
