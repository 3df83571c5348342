"""Options of a command beside its overrides: argparse, with rkd's errors."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from rkd.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """The options and arguments of a command, in any order among its overrides.

    Args:
        command: the word after `rkd`.
        what: what the command does, the first lines of its help.
        examples: the last lines of its help.
    """

    def __init__(self, command: str, what: str, examples: str) -> None:
        super().__init__(
            f"rkd {command}",
            description=what,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options; ConfigError for what is unknown, missing or not among the choices."""
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            word = next((word for word in unknown if word.startswith("-")), unknown[0])
            near = difflib.get_close_matches(word.partition("=")[0], self.flags(), 1, 0.5)
            hint = f"nearest: {near[0]}" if near else f"{self.prog} --help lists what there is"
            raise ConfigError(f"{self.command}: unknown {'option' if word[0] == '-' else 'argument'} {word}; {hint}")
        return options

    def flags(self) -> dict[str, argparse.Action]:
        """Return the options by what is written for them, such as `--state`."""
        return {flag: action for action in self._actions for flag in action.option_strings if flag.startswith("--")}

    def error(self, message: str) -> NoReturn:
        word, *choices = re.findall(r"'([^']*)'", message.partition("invalid choice:")[2]) or [""]
        if near := difflib.get_close_matches(word, choices, 1, 0.6):
            message += f"; nearest: {near[0]}"
        raise ConfigError(f"{self.command}: {message}; see {self.prog} --help")


def count(most: int) -> Callable[[str], int]:
    """Return what reads an option's whole number from 1 to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {most}")
        return int(text)

    return read
