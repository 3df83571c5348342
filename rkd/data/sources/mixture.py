"""Several sources as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rkd.data.sources.base import Rejected, Source, Utterance
from rkd.errors import ConfigError


class Mixture:
    """Several sources as one: all of them train, and those named in ``test_from`` validate and test.

    Ids and speakers are prefixed with the source's name.

    Args:
        sources: name -> source.
        test_from: names of the sources whose validation and test splits are used.

    Raises:
        ConfigError: ``test_from`` is empty or names a source that is not there.
    """

    def __init__(self, sources: Mapping[str, Source], test_from: Sequence[str]):
        self.sources, self.test_from = dict(sources), list(test_from)
        if not self.test_from or not set(self.test_from) <= set(self.sources):
            raise ConfigError(
                f"data.test_from={self.test_from}: name at least one source; there are {', '.join(self.sources)}"
            )

    def inputs(self) -> Iterator[Path | str]:
        """Yield what all sources depend on."""
        return (one for source in self.sources.values() for one in source.inputs())

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Yield one source after the other."""
        for name, source in self.sources.items():
            for found in source.utterances():
                id = f"{name}/{found.id}"
                if isinstance(found, Rejected):
                    yield replace(found, id=id)
                elif found.split == "train" or name in self.test_from:
                    speaker = None if found.speaker is None else f"{name}/{found.speaker}"
                    yield replace(found, id=id, speaker=speaker, source=name)
