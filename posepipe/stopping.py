"""Which trials a sweep stops before their end."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from posepipe.config import TuneConfig
from posepipe.trials import Trial, tune_name


def build_scheduler(config: TuneConfig, known: Sequence[Trial] = ()) -> ASHAScheduler | None:
    """ASHA, or None where every trial runs to its end."""
    return None if config.scheduler == "none" or config.train.epochs == 1 else _Asha(config.train.epochs, known)


class _Asha(ASHAScheduler):
    """ASHA that is told what the trials of an interrupted sweep reached.

    Nothing is stopped in its last epoch: a trial that gets there closes its run folder itself.
    """

    def __init__(self, epochs: int, known: Sequence[Trial]) -> None:
        first = max(1, epochs // 4)
        super().__init__(time_attr="epoch", grace_period=first, max_t=max(first, epochs - 1), reduction_factor=2, stop_last_trials=False)
        self._known = {trial.name: trial for trial in known}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for name in [name for name, each in self._known.items() if each.has_ended]:
            stand_in = SimpleNamespace(trial_id=name)
            super().on_trial_add(tune_controller, stand_in)
            self._replay(stand_in, self._known.pop(name))
        if tune_name(trial) in self._known:
            self._replay(trial, self._known.pop(tune_name(trial)))

    def _replay(self, trial: Any, known: Trial) -> None:
        for row in known.history:
            super().on_trial_result(None, trial, row)
