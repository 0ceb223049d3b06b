"""What a sweep tries, and what it knows after an interruption."""

from collections import Counter
from typing import Any

import pytest
from ray.tune.search.optuna import OptunaSearch

from posepipe.config import TrainConfig, TuneConfig
from posepipe.searching import Optuna, plan_trials
from posepipe.trials import Trial


def sweep(*search: str, seed: int = 0, **changes: Any) -> TuneConfig:
    return TuneConfig(train=TrainConfig(samples_uri="s", runs_uri="r", name="sweep", seed=seed), search=search, **changes)


def trial(number: int, parameters: dict[str, Any], objective: float | None, status: str = "completed") -> Trial:
    history = [] if objective is None else [{"epoch": 1, "objective": objective}]
    return Trial(f"trial-{number:03d}", parameters, status, None, history, history[0] if history else None, None)


# Grids and draws


def test_a_grid_tries_every_combination_once() -> None:
    planned = plan_trials(sweep("learning_rate=grid:1e-4,1e-3", "batch_size=grid:32,64"))
    assert planned == {
        "trial-000": {"learning_rate": 1e-4, "batch_size": 32},
        "trial-001": {"learning_rate": 1e-4, "batch_size": 64},
        "trial-002": {"learning_rate": 1e-3, "batch_size": 32},
        "trial-003": {"learning_rate": 1e-3, "batch_size": 64},
    }


def test_each_pass_over_the_grid_has_new_draws() -> None:
    planned = plan_trials(sweep("batch_size=grid:32,64", "learning_rate=loguniform:1e-5,1e-3", num_trials=3)).values()
    assert Counter(parameters["batch_size"] for parameters in planned) == {32: 3, 64: 3}
    assert len({parameters["learning_rate"] for parameters in planned}) == 6


def test_draws_stay_inside_their_interval() -> None:
    planned = plan_trials(sweep("learning_rate=loguniform:1e-5,1e-3", "batch_size=choice:32,64", num_trials=200)).values()
    drawn = [parameters["learning_rate"] for parameters in planned]
    assert min(drawn) >= 1e-5
    assert max(drawn) <= 1e-3
    assert 50 < sum(value < 1e-4 for value in drawn) < 150, "as many below as above the middle of the decades"
    assert {parameters["batch_size"] for parameters in planned} == {32, 64}
    uniform = [each["learning_rate"] for each in plan_trials(sweep("learning_rate=uniform:0.1,0.2", num_trials=50)).values()]
    assert 0.1 <= min(uniform) < max(uniform) <= 0.2


def test_the_seed_decides_the_draws() -> None:
    search = ("learning_rate=loguniform:1e-5,1e-3", "augment=choice:true,false")
    assert plan_trials(sweep(*search, num_trials=5)) == plan_trials(sweep(*search, num_trials=5))
    assert plan_trials(sweep(*search, num_trials=5)) != plan_trials(sweep(*search, num_trials=5, seed=1))


def test_no_configuration_is_drawn_twice() -> None:
    planned = plan_trials(sweep("batch_size=choice:32,64,128", num_trials=20)).values()
    assert sorted(parameters["batch_size"] for parameters in planned) == [32, 64, 128]


# Optuna


def suggestions(search: Optuna, number: int) -> list[dict[str, Any]]:
    found = []
    for index in range(number):
        suggested: Any = search.suggest(f"t{index}")
        if suggested == "FINISHED":
            break
        found.append(suggested["trial"])
        search.on_trial_complete(f"t{index}", {"objective": 0.5, "training_iteration": 1})
    return found


def test_optuna_goes_where_the_best_trials_were() -> None:
    search = Optuna(sweep("learning_rate=uniform:0.1,1.1", num_trials=60, search_algorithm="optuna"), [])
    drawn = []
    for index in range(60):
        suggested: Any = search.suggest(f"t{index}")
        drawn.append(suggested["trial"]["parameters"]["learning_rate"])
        search.on_trial_complete(f"t{index}", {"objective": -abs(drawn[-1] - 0.3), "training_iteration": 1})
    # Of even draws a tenth would lie there: three.
    assert sum(abs(value - 0.3) < 0.05 for value in drawn[30:]) >= 9
    assert sum(abs(value - 0.3) < 0.05 for value in drawn[:10]) < 5


def test_optuna_is_told_of_a_trials_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(OptunaSearch, "on_trial_result", lambda _, key, result: told.append(result["objective"]))
    monkeypatch.setattr(OptunaSearch, "on_trial_complete", lambda _, key, result, error: told.append(result["objective"]))
    search = Optuna(sweep("learning_rate=uniform:0.1,1.1", num_trials=2, search_algorithm="optuna"), [])
    search.suggest("a")
    for objective in (0.2, 0.6, 0.3):
        search.on_trial_result("a", {"objective": objective})
    search.on_trial_complete("a", {"objective": 0.3})
    assert told == [0.2, 0.6, 0.6, 0.6]


def test_optuna_goes_through_the_grid_and_chooses_the_rest() -> None:
    config = sweep("batch_size=grid:32,64", "learning_rate=loguniform:1e-5,1e-3", num_trials=3, search_algorithm="optuna")
    found = suggestions(Optuna(config, []), 6)
    assert [each["name"] for each in found] == [f"trial-{number:03d}" for number in range(6)]
    assert Counter(each["parameters"]["batch_size"] for each in found) == {32: 3, 64: 3}
    assert len({each["parameters"]["learning_rate"] for each in found}) == 6


def test_optuna_suggests_nothing_twice_and_ends_where_nothing_is_left() -> None:
    config = sweep("batch_size=choice:32,64,128", num_trials=20, search_algorithm="optuna")
    search = Optuna(config, [])
    assert not search.is_exhausted
    found = suggestions(search, 20)
    assert search.is_exhausted
    assert sorted(each["parameters"]["batch_size"] for each in found) == [32, 64, 128]


def test_after_an_interruption_optuna_first_goes_on_with_what_was_under_way_and_repeats_nothing() -> None:
    config = sweep("batch_size=grid:32,64", "learning_rate=loguniform:1e-5,1e-3", num_trials=3, search_algorithm="optuna")
    before = suggestions(Optuna(config, []), 3)
    known = [trial(number, each["parameters"], 0.5) for number, each in enumerate(before[:2])]
    known.append(trial(2, before[2]["parameters"], None, "under way"))
    after = suggestions(Optuna(config, known), 4)
    assert after[0] == {"name": "trial-002", "parameters": before[2]["parameters"]}
    assert [each["name"] for each in after[1:]] == ["trial-003", "trial-004", "trial-005"]
    every = [*before, *after[1:]]
    assert Counter(each["parameters"]["batch_size"] for each in every) == {32: 3, 64: 3}
    assert len({each["parameters"]["learning_rate"] for each in every}) == 6


def test_optuna_learns_from_the_trials_of_before_the_interruption() -> None:
    config = sweep("learning_rate=uniform:0.1,1.1", num_trials=60, search_algorithm="optuna")
    known = [trial(n, {"learning_rate": 0.1 + n / 40}, -abs(0.1 + n / 40 - 0.3)) for n in range(40)]
    drawn = [each["parameters"]["learning_rate"] for each in suggestions(Optuna(config, known), 10)]
    assert sum(abs(value - 0.3) < 0.15 for value in drawn) >= 6


@pytest.mark.parametrize("objective", [None, 0.4])
def test_a_failed_trial_is_no_obstacle_to_optuna(objective: float | None) -> None:
    config = sweep("learning_rate=uniform:0.1,1.1", num_trials=3, search_algorithm="optuna")
    search = Optuna(config, [trial(0, {"learning_rate": 0.5}, objective, "failed")])
    suggested: Any = search.suggest("a")
    search.on_trial_result("a", {"done": True})
    search.on_trial_complete("a", {"done": True})
    other: Any = search.suggest("b")
    assert [suggested["trial"]["name"], other["trial"]["name"]] == ["trial-001", "trial-002"]
