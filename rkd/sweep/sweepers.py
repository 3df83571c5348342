"""Which runs a sweep makes: all combinations of the values given, or those that a search proposes.

A sweeper proposes rounds of runs and learns what became of each; to add one, write a class with the methods of
``Sweeper`` and a YAML under ``conf/sweeper``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rkd.config.overrides import Interval
from rkd.errors import ConfigError, ResourceError


@dataclass(frozen=True)
class Dimension:
    """An override with several values: what stands before its equals sign, and the values or an interval of them."""

    written: str
    values: tuple[str, ...]
    interval: Interval | None = None

    def words(self) -> str:
        """Return the override with its first value."""
        return f"{self.written}={self.values[0] if self.interval is None else self.interval.low}"


class Sweeper(Protocol):
    """What chooses the runs of a sweep."""

    def begin(self, space: Sequence[Dimension], folder: Path) -> None:
        """Get to know what varies; ``folder`` is there for the sweeper's own files."""
        ...

    def earlier(self) -> list[tuple[list[str], bool]]:
        """Return the overrides that vary of each run that ended in an earlier call, and whether it was given up."""
        ...

    def propose(self) -> list[list[str]]:
        """Return the overrides that vary of each run of the next round; no run when there is none left."""
        ...

    def hopeless(self, run: int, step: int, wer: float) -> bool:
        """Say whether a run of this round is not worth finishing, from its word error rate at a step."""
        ...

    def learn(self, run: int, wer: float | None, stopped: bool) -> None:
        """Be told of a run of this round: its word error rate, None where it failed; whether it was interrupted."""
        ...


class Grid:
    """Every combination of the values, all in one round; the last dimension varies fastest."""

    def begin(self, space: Sequence[Dimension], folder: Path) -> None:
        for dimension in space:
            if dimension.interval is not None:
                raise ConfigError(f"{dimension.written}=interval(...) has no end of values; name them, or search with "
                                  "sweeper=optuna")  # fmt: skip
        values = [[f"{d.written}={value}" for value in d.values] for d in space]
        self.runs = [list(words) for words in itertools.product(*values)]

    def earlier(self) -> list[tuple[list[str], bool]]:
        return []  # all are proposed again, and those that are done take no time

    def propose(self) -> list[list[str]]:
        runs, self.runs = self.runs, []
        return runs

    def hopeless(self, run: int, step: int, wer: float) -> bool:
        return False

    def learn(self, run: int, wer: float | None, stopped: bool) -> None:
        pass


class Optuna:
    """A search for the lowest word error rate (tree-structured Parzen estimators, Bergstra et al. 2011), by Optuna.

    The study is kept in ``study.journal``: the same command goes on with it, and interrupted runs first.

    Args:
        n_trials: runs in all; those that failed count.
        at_once: runs in a round: how many the launcher makes side by side.
        startup: runs drawn at random before the search begins to lean on what it found.
        prune: whether a run is stopped at a validation where it is worse than the median of the others at that step.
        seed: of the search.
    """

    def __init__(self, n_trials: int = 20, at_once: int = 1, startup: int = 5, prune: bool = True, seed: int = 0):
        self.n_trials, self.at_once, self.startup, self.prune, self.seed = n_trials, at_once, startup, prune, seed

    def begin(self, space: Sequence[Dimension], folder: Path) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        except ImportError as error:
            raise ResourceError("sweeper=optuna needs the package optuna: pip install 'rkd[optuna]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = list(space)
        self.distributions = {d.written: distribution(d) for d in space}
        folder.mkdir(parents=True, exist_ok=True)
        journal = str(folder / "study.journal")
        storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
        pruner = optuna.pruners.MedianPruner(self.startup) if self.prune else optuna.pruners.NopPruner()
        sampler = optuna.samplers.TPESampler(n_startup_trials=self.startup, seed=self.seed)
        self.study = optuna.create_study(
            storage=storage, study_name="rkd", sampler=sampler, pruner=pruner, load_if_exists=True
        )
        self.round: list[Any] = []
        for trial in self.study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # of a sweep that was killed
            self._again(trial)

    def earlier(self) -> list[tuple[list[str], bool]]:
        from optuna.trial import TrialState

        trials = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [(self._words(trial), trial.state is TrialState.PRUNED) for trial in trials]

    def propose(self) -> list[list[str]]:
        from optuna.trial import TrialState

        ended = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        n = self.n_trials - sum(trial.number not in self._interrupted() for trial in ended)
        self.round = [self.study.ask(self.distributions) for _ in range(min(self.at_once, n))]
        return [self._words(trial) for trial in self.round]

    def _words(self, trial: Any) -> list[str]:
        values = [trial.params[dimension.written] for dimension in self.space]
        # A value that people can type again.
        shown = [f"{value:.4g}" if isinstance(value, float) else value for value in values]
        return [f"{dimension.written}={value}" for dimension, value in zip(self.space, shown, strict=True)]

    def hopeless(self, run: int, step: int, wer: float) -> bool:
        trial = self.round[run]
        trial.report(wer, step)
        return trial.should_prune()

    def learn(self, run: int, wer: float | None, stopped: bool) -> None:
        import optuna

        trial = self.round[run]
        if stopped and wer is None:
            self._again(trial)
        elif stopped:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif wer is None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, wer)

    def _again(self, trial: Any) -> None:
        """Let a run that was interrupted be proposed once more, before any other."""
        import optuna

        self.study.set_user_attr("interrupted", [*self._interrupted(), trial.number])
        self.study.enqueue_trial(trial.params)
        self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _interrupted(self) -> list[int]:
        return self.study.user_attrs.get("interrupted", [])


def distribution(dimension: Dimension) -> Any:
    """Return Optuna's description of what an override may be."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    interval = dimension.interval
    if interval is None:
        return CategoricalDistribution(dimension.values)
    if isinstance(interval.low, int):
        return IntDistribution(interval.low, int(interval.high), log=interval.log)
    return FloatDistribution(interval.low, interval.high, log=interval.log)
