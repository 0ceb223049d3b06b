"""What a sweep tries: grids that are gone through, draws from a seed, or Optuna's suggestions."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from posepipe.config import TuneConfig, parse_search
from posepipe.trials import Trial, trial_name

# A field, how its values are chosen, and the values or the interval.
Field = tuple[str, str, tuple[Any, ...]]
MAX_REPEATS = 100  # of draws that were drawn before, until nothing new is taken to be left


def plan_trials(config: TuneConfig) -> dict[str, dict[str, Any]]:
    """Name -> parameters of every trial of a random or grid search, each configuration once; the seed decides."""
    fields = [parse_search(text) for text in config.search]
    rng = np.random.default_rng(config.train.seed)
    planned: list[dict[str, Any]] = []
    for combination in grid(fields) * config.num_trials:
        for _ in range(MAX_REPEATS):
            parameters = {name: combination[name] if kind == "grid" else _draw(kind, values, rng) for name, kind, values in fields}
            if parameters not in planned:
                planned.append(parameters)
                break
    return {trial_name(number): parameters for number, parameters in enumerate(planned)}


def grid(fields: Sequence[Field]) -> list[dict[str, Any]]:
    """Every combination of the values of the grid fields; of no such fields, the empty one."""
    grids = [(name, values) for name, kind, values in fields if kind == "grid"]
    return [dict(zip([name for name, _ in grids], values, strict=True)) for values in itertools.product(*(v for _, v in grids))]


def _draw(kind: str, values: Sequence[Any], rng: np.random.Generator) -> Any:
    if kind == "choice":
        return values[int(rng.integers(len(values)))]
    low, high = values
    return float(rng.uniform(low, high)) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))


class Optuna(OptunaSearch):
    """Optuna's TPE, which is told what the trials of an interrupted sweep reached.

    Grid fields stay exhaustive: Optuna is given their values and chooses the others. A configuration is suggested once.
    """

    def __init__(self, config: TuneConfig, known: Sequence[Trial]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fields = [parse_search(text) for text in config.search]
        # Not the seed alone: the first draws after an interruption would be those of the beginning.
        sampler = optuna.samplers.TPESampler(seed=config.train.seed + len(known))
        space = {name: _distribution(kind, values) for name, kind, values in fields}
        super().__init__(space=space, metric="objective", mode="max", sampler=sampler)
        self.is_exhausted = False
        """Whether no configuration was found that was not tried before."""
        self._names_known = {trial.name for trial in known}
        self._tried = [trial.parameters for trial in known]
        self._under_way = [(trial.name, trial.parameters) for trial in known if not trial.has_ended]
        self._keys: dict[str, str] = {}
        self._best: dict[str, float] = {}
        self._grid_names = [name for name, kind, _ in fields if kind == "grid"]
        for trial in known:
            if trial.has_ended:
                value = trial.best["objective"] if trial.best else None
                self.add_evaluated_point(trial.parameters, value, error=value is None)
        for _, parameters in self._under_way:
            self._ot_study.enqueue_trial(parameters)
        left = Counter(self._grid_part(combination) for combination in grid(fields) * config.num_trials)
        left -= Counter(map(self._grid_part, self._tried))
        for part in left.elements() if self._grid_names else ():
            self._ot_study.enqueue_trial(dict(part))

    def _grid_part(self, parameters: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
        return tuple((name, parameters[name]) for name in self._grid_names)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial, under the key `trial`: its name and its parameters."""
        for number in range(MAX_REPEATS):
            self._keys[trial_id] = f"{trial_id}-{number}"
            parameters: Any = super().suggest(self._keys[trial_id])
            if self._under_way:
                name, parameters = self._under_way.pop(0)
                return {"trial": {"name": name, "parameters": parameters}}
            if parameters not in self._tried:
                self._tried.append(parameters)
                name = next(trial_name(number) for number in itertools.count() if trial_name(number) not in self._names_known)
                self._names_known.add(name)
                return {"trial": {"name": name, "parameters": parameters}}
            super().on_trial_complete(self._keys[trial_id], error=True)
            if self._grid_names:
                self._ot_study.enqueue_trial(dict(self._grid_part(parameters)))
        self.is_exhausted = True
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "objective" in result:
            super().on_trial_result(self._keys[trial_id], self._best_so_far(trial_id, result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        is_scored = "objective" in (result or {})
        super().on_trial_complete(
            self._keys[trial_id], self._best_so_far(trial_id, result or {}) if is_scored else result, error or not is_scored
        )

    def _best_so_far(self, trial_id: str, result: dict[str, Any]) -> dict[str, Any]:
        """A trial is worth its best epoch, whose checkpoint is kept, not its last one."""
        self._best[trial_id] = max(result["objective"], self._best.get(trial_id, -math.inf))
        return {**result, "objective": self._best[trial_id]}


def _distribution(kind: str, values: Sequence[Any]) -> BaseDistribution:
    if kind in ("grid", "choice"):
        return CategoricalDistribution(list(values))
    low, high = values
    return FloatDistribution(low, high, log=kind == "loguniform")
