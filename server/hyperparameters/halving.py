"""Successive halving between runs: most are stopped early, the best go on (Li et al., arXiv 1810.05934; via Optuna).

    rung k   after r ηᵏ rounds a run goes on iff its score is among the best 1/η of all that came so far

A run is asked for, plays its rounds with what it was given, and tells a score after each. The history of all runs is
the whole state, so a search goes on from what the runs wrote down. Runs are played one after another, hence the
asynchronous rule: nobody waits for a rung to fill, and the first run always plays to its end.

Every run is a set of releases of its own: a device's ledger counts all rounds of all runs that it takes part in.

Deviation from Optuna's use: its samplers keep a generator in memory; here each run's is seeded by the run's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Literal

from florilegium.errors import ConfigError, InputError
from strategies.draws import seed_of
from strategies.hyperparameters import HYPERPARAMETERS, require_values

if TYPE_CHECKING:
    import optuna

__all__ = ["Halving", "Run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a search.

    Attributes:
        values: what it trains with, by name.
        scores: after each of its rounds; higher is better.
    """

    values: Mapping[str, float]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """Search ranges of hyperparameters with runs that are stopped early.

    Attributes:
        ranges: least and greatest value of each hyperparameter searched, by name.
        rounds: R, of a run that is never stopped.
        first_rounds: r, what every run may play.
        reduction: η; of so many runs, one goes on.
        sampler: "random" on each hyperparameter's scale, or "tpe" (Bergstra et al. 2011): near what did well before.
        seed: what is asked derives from it.

    Raises:
        ConfigError: a range cannot be, or a number is out of its range.
    """

    ranges: Mapping[str, tuple[float, float]]
    rounds: int
    first_rounds: int = 1
    reduction: int = 3
    sampler: Literal["random", "tpe"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ranges:
            raise ConfigError("ranges is empty", "name a hyperparameter to search")
        for name, (lower, upper) in self.ranges.items():
            require_values({name: lower})
            require_values({name: upper})
            if not lower < upper:
                raise ConfigError(f"{name} ranges from {lower} to {upper}", "give the lower value first")
        if not 1 <= self.first_rounds <= self.rounds:
            raise ConfigError(
                f"first_rounds must be from 1 to the {self.rounds} rounds of a run, got {self.first_rounds}",
                "1 stops runs soonest",
            )
        if self.reduction < 2:
            raise ConfigError(f"reduction must be >= 2, got {self.reduction}", "3 is usual")
        if self.sampler not in ("random", "tpe"):
            raise ConfigError(f"no sampler {self.sampler!r}", "use 'random' or 'tpe'")
        # A frozen value must not change with the mapping it was made from.
        object.__setattr__(self, "ranges", MappingProxyType(dict(self.ranges)))

    def ask(self, runs: Sequence[Run]) -> dict[str, float]:
        """Return what the next run trains with, given all runs before it, the oldest first.

        Raises:
            ConfigError: Optuna is not installed.
        """
        with _optuna() as library:
            study = self._replay(library, runs)
            trial = study.ask(self._distributions(library))
        return {name: float(trial.params[name]) for name in self.ranges}

    def goes_on(self, runs: Sequence[Run]) -> bool:
        """Whether the last of `runs` may play another round.

        Raises:
            InputError: there is no run.
            ConfigError: Optuna is not installed.
        """
        *before, last = _some(runs)
        if len(last.scores) >= self.rounds or not all(map(math.isfinite, last.scores)):
            return False
        with _optuna() as library:
            return self._play(self._replay(library, before), self._distributions(library), last)[1]

    def best(self, runs: Sequence[Run]) -> Run:
        """Return the run of the highest last score among those that played all rounds.

        Raises:
            InputError: none did.
        """
        ended = [run for run in runs if len(run.scores) >= self.rounds and math.isfinite(run.scores[-1])]
        return max(_some(ended), key=lambda run: run.scores[-1])

    def _distributions(self, library: ModuleType) -> dict[str, optuna.distributions.BaseDistribution]:
        kinds = {"int": library.distributions.IntDistribution, "float": library.distributions.FloatDistribution}
        found = {}
        for name, (lower, upper) in self.ranges.items():
            known = HYPERPARAMETERS[name]
            number = int if known.kind == "int" else float
            found[name] = kinds[known.kind](number(lower), number(upper), log=known.scale == "log")
        return found

    def _replay(self, library: ModuleType, runs: Sequence[Run]) -> optuna.study.Study:
        """Return a study that has seen `runs`, and whose next draw is that of the run after them."""
        seed = seed_of(self.seed, "halving", len(runs)) % 2**32
        samplers = {"random": library.samplers.RandomSampler, "tpe": library.samplers.TPESampler}
        study: optuna.study.Study = library.create_study(
            direction="maximize",
            sampler=samplers[self.sampler](seed=seed),
            pruner=library.pruners.SuccessiveHalvingPruner(
                min_resource=self.first_rounds, reduction_factor=self.reduction
            ),
        )
        distributions = self._distributions(library)
        for run in runs:
            trial, _ = self._play(study, distributions, run)
            if len(run.scores) >= self.rounds and math.isfinite(run.scores[-1]):
                study.tell(trial, run.scores[-1])
            else:
                study.tell(trial, state=library.trial.TrialState.PRUNED)
        return study

    def _play(
        self, study: optuna.study.Study, distributions: dict[str, optuna.distributions.BaseDistribution], run: Run
    ) -> tuple[optuna.trial.Trial, bool]:
        """Tell the study what a run did, and return whether it may go on."""
        study.enqueue_trial(dict(run.values))
        trial, stopped = study.ask(distributions), False
        for server_round, score in enumerate(run.scores, start=1):
            trial.report(score, server_round)
            stopped = trial.should_prune() or stopped
        return trial, not stopped


def _some(runs: Sequence[Run]) -> Sequence[Run]:
    if not runs:
        raise InputError("there is no run to judge", "play one to its end before")
    return runs


@contextmanager
def _optuna() -> Iterator[ModuleType]:
    """Lend Optuna, quiet while it is lent: a search is replayed often, and nobody wants to read that each time."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "optuna is not installed, and runs cannot be searched without it",
            "in a clone of the project: pip install '.[simulation]'",
        ) from None
    loudness = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(loudness)
