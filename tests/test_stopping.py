"""What ASHA stops, and what it remembers after an interruption."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from posepipe.config import TrainConfig, TuneConfig
from posepipe.stopping import build_scheduler
from posepipe.trials import Trial


def sweep(epochs: int = 8, **changes: Any) -> TuneConfig:
    return TuneConfig(train=TrainConfig(samples_uri="s", runs_uri="r", name="sweep", epochs=epochs), **changes)


def added(scheduler: Any, name: str) -> Any:
    trial = SimpleNamespace(trial_id=f"ray-{name}", config={"trial": {"name": name}})
    scheduler.on_trial_add(None, trial)
    return trial


def asha(epochs: int, known: list[Trial] | None = None) -> Any:
    scheduler = build_scheduler(sweep(epochs), known or [])
    assert scheduler is not None
    scheduler.set_search_properties("objective", "max")
    return scheduler


def report(scheduler: Any, trial: Any, epoch: int, objective: float) -> bool:
    """Whether the trial goes on."""
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "objective": objective}) == TrialScheduler.CONTINUE


def test_asha_lets_a_quarter_of_the_epochs_pass_and_stops_the_worse_half() -> None:
    scheduler = asha(8)
    good, bad = added(scheduler, "a"), added(scheduler, "b")
    assert report(scheduler, good, 1, 0.5)
    assert report(scheduler, bad, 1, 0.1), "too early to say"
    assert report(scheduler, good, 2, 0.5)
    assert not report(scheduler, bad, 2, 0.1)


@pytest.mark.parametrize("epochs", [2, 3, 5, 8, 9])
def test_nothing_is_stopped_in_its_last_epoch(epochs: int) -> None:
    scheduler = asha(epochs)
    better, worse = added(scheduler, "a"), added(scheduler, "b")
    for epoch in range(1, epochs):
        assert report(scheduler, worse, epoch, 0.5)
        assert report(scheduler, better, epoch, 0.5)
    assert report(scheduler, better, epochs, 0.9)
    assert report(scheduler, worse, epochs, 0.0)


def test_where_nothing_may_be_stopped_there_is_no_asha() -> None:
    assert build_scheduler(sweep(epochs=8, scheduler="none")) is None
    assert build_scheduler(sweep(epochs=1)) is None


def test_asha_remembers_what_trials_of_before_an_interruption_reached() -> None:
    rows = [{"epoch": epoch, "objective": 0.5} for epoch in range(1, 9)]
    known = [Trial("a", {}, "completed", None, rows, rows[-1], "uri"), Trial("b", {}, "under way", None, rows[:1], rows[0], "uri")]
    scheduler = asha(8, known)
    resumed = added(scheduler, "b")
    assert not report(scheduler, resumed, 2, 0.1), "worse than a, which ended before"
    fresh = asha(8)
    assert report(fresh, added(fresh, "b"), 2, 0.1), "nothing is known that is better"


def test_a_resumed_trial_is_not_judged_again_for_what_it_reached_before() -> None:
    rows = [{"epoch": epoch, "objective": 0.1} for epoch in (1, 2)]
    scheduler = asha(8, [Trial("b", {}, "under way", None, rows, rows[0], "uri")])
    resumed = added(scheduler, "b")
    other = added(scheduler, "c")
    assert report(scheduler, other, 2, 0.5)
    assert report(scheduler, resumed, 3, 0.1), "it went on at epoch 2, there is nothing to compare with before 4"
