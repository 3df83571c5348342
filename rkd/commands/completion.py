"""`rkd completion`: scripts that let a shell complete rkd's command line, and the words that they ask for."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence

from rkd.commands import keys
from rkd.commands.help import COMMANDS, GROUPS, STAGES
from rkd.commands.options import Parser
from rkd.config.folders import group_files
from rkd.config.reads import reads
from rkd.console import put
from rkd.errors import ConfigError

# Keys whose value is a path, by their last part, and whether it must be a folder.
_PATHS = {"path": False, "folder": True, "rooms": True, "root": True}

_BASH = """\
# bash completion of rkd; in ~/.bashrc:  source <(rkd completion bash)
_rkd() {
    local breaks='*[=@:]' i n=0 current prefix word
    local -a words=("")
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # Bash has split the words at = and @ and : as well.
        if ((i > 1)) && [[ -n $word && ($word == [=@:]* || ${words[n]} == $breaks) ]]; then
            words[n]+=$word
        else
            ((i > 1)) && ((n += 1))
            words[n]=$word
        fi
    done
    current=${words[n]}
    prefix=${current%"${current##$breaks}"}
    COMPREPLY=()
    while IFS= read -r word; do
        [[ $word == *[=./] ]] && compopt -o nospace 2>/dev/null
        word=${word#"$prefix"}
        # Bash's own quoting, which %q is, would also quote the comma of a sweep.
        [[ -n $word ]] && word=$(printf %q "$word") && COMPREPLY+=("${word//\\\\,/,}")
    done < <("${COMP_WORDS[0]}" completion --words "${words[@]}" 2>/dev/null)
}
complete -F _rkd rkd"""

_ZSH = """\
#compdef rkd
# zsh completion of rkd; in ~/.zshrc, after compinit:  source <(rkd completion zsh)
_rkd() {
    local -a found open closed
    found=("${(@f)$("${words[1]}" completion --words "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    open=("${(@M)found:#*[=./]}")
    closed=("${(@)found:#(|*[=./])}")
    (($#open)) && compadd -S '' -a open
    (($#closed)) && compadd -a closed
}
compdef _rkd rkd"""

_FISH = """\
# fish completion of rkd; in ~/.config/fish/config.fish:  rkd completion fish | source
function __rkd_words
    set -l words (commandline -opc)
    set -l name $words[1]
    set -e words[1]
    command $name completion --words $words (commandline -ct) 2>/dev/null
end
complete -c rkd -f -a '(__rkd_words)'"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def parser() -> Parser:
    """Return the options."""
    made = Parser(
        "completion",
        "Print a script that completes stages, commands, groups, choices, keys, values and folders.",
        "in ~/.bashrc:                    source <(rkd completion bash)\n"
        "in ~/.zshrc, after compinit:     source <(rkd completion zsh)\n"
        "in ~/.config/fish/config.fish:   rkd completion fish | source",
    )
    made.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), help="whose script")
    made.add_argument("--words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> int:
    """Print a script, or for one the words that complete a command line."""
    if options.words is not None:
        put("\n".join(complete(options.words)))
    elif options.shell is None:
        raise ConfigError(f"completion: name a shell: rkd completion {' | '.join(SCRIPTS)}")
    else:
        put(SCRIPTS[options.shell])
    return 0


def complete(words: Sequence[str]) -> list[str]:
    """Return what the last word of a command line may become, given those before it; the first follows `rkd`."""
    *before, current = words or [""]
    if not before:
        found: Iterable[str] = [*STAGES, *COMMANDS, "--help", "--version"]
    elif before[0] in STAGES:
        found = ["--help", "--multirun"] if current.startswith("-") else _overrides(before[0], before[1:], current)
    elif before[0] in COMMANDS:
        found = _command(before[0], before[1:], current)
    else:
        found = []
    return [word for word in found if word.startswith(current)]


def _command(name: str, before: Sequence[str], current: str) -> Iterable[str]:
    parser = importlib.import_module(f"rkd.commands.{name}").parser()
    flags = parser.flags()
    option = flags.get(before[-1]) if before else None
    if option and option.nargs != 0:
        return option.choices or (keys.paths(current, True) if option.metavar == "DIR" else [])
    if current.startswith("-"):
        return [flag for flag, action in flags.items() if action.help != argparse.SUPPRESS]
    if name == "listen":
        return _overrides("distill", before, current)
    first = next((word for word in before if not word.startswith("-")), None)
    if name in ("show", "check") and first is not None:
        return _overrides(first, before, current) if first in STAGES else []
    return {
        "ls": lambda: keys.paths(current, True),
        "show": lambda: [*STAGES, *keys.paths(current, True)],
        "check": lambda: list(STAGES),
        "completion": lambda: list(SCRIPTS),
    }[name]()


def _overrides(stage: str, before: Sequence[str], current: str) -> Iterator[str]:
    sign, key, equals, value = re.fullmatch(r"(~|\+{0,2})([^=]*)(=?)(.*)", current, re.DOTALL).groups()  # type: ignore[union-attr]
    groups = dict.fromkeys([*GROUPS[stage], *GROUPS["train-teacher"][2:-1], "launcher", "sweeper"])
    choices = {word.partition("=")[0]: word.partition("=")[2] for word in before}
    choices = {group: choice for group, choice in choices.items() if group.partition("@")[0] in groups}
    if not equals:
        if sign != "~":
            yield from (f"{sign}{group}=" for group in groups)
        known = [name for name in keys.keys_below(choices, key) if reads(stage, name)]
        yield from (sign + name for name in _next_level(known, key, "" if sign == "~" else "="))
    elif key in groups:
        listed = value[: value.rfind(",") + 1]  # of a sweep: the choices before the one that is typed
        yield from (f"{sign}{key}={listed}{choice}" for choice in group_files(key.partition("@")[0]))
        if key == "experiment":
            yield f"{sign}{key}=null"
    else:
        values = keys.values_of(key)
        if key == "student.init" and "student.source" not in keys.keys_below(choices, "student."):
            values.remove("pretrained")  # a shape of rkd's own
        last = key.rpartition(".")[2]
        if last in _PATHS:
            values += keys.paths(value, _PATHS[last])
        yield from (f"{sign}{key}={word}" for word in values)


def _next_level(names: Iterable[str], start: str, end: str) -> list[str]:
    """Return the names that begin with a text up to their next dot; an only dot leads on to what follows it."""
    levels = dict.fromkeys(
        name[: dot + 1] if (dot := name.find(".", len(start))) >= 0 else name + end
        for name in names
        if name.startswith(start)
    )
    if "." in start and end and len(levels) == 1 and (only := next(iter(levels))).endswith("."):
        return _next_level(names, only, end)
    # Without an end, as in ~key, a key that has others below it can be meant itself.
    return list(dict.fromkeys(word for name in levels for word in ([name] if end else [name.rstrip("."), name])))
