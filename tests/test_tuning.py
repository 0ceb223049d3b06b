"""What a sweep tries. The sweep itself runs in test_demo.py."""

from pathlib import Path
from typing import Any

import pytest

from posepipe import tuning
from posepipe.config import TrainConfig, TuneConfig


def sweep(epochs: int = 8, **changes: Any) -> TuneConfig:
    return TuneConfig(train=TrainConfig(samples_uri="s", runs_uri="r", name="sweep", epochs=epochs), **changes)


def test_a_grid_tries_all_values() -> None:
    assert tuning._space("grid", (1e-4, 1e-3)) == {"grid_search": [1e-4, 1e-3]}


def test_draws_stay_inside_their_interval() -> None:
    drawn = [tuning._space("loguniform", (1e-5, 1e-3)).sample() for _ in range(200)]
    assert min(drawn) >= 1e-5
    assert max(drawn) <= 1e-3
    assert sum(value < 1e-4 for value in drawn) > 50, "as many below as above the middle of the decades"
    assert {tuning._space("choice", (32, 64)).sample() for _ in range(50)} == {32, 64}


def test_asha_lets_a_quarter_of_the_epochs_pass_first() -> None:
    scheduler = tuning._scheduler(sweep(epochs=8))
    assert scheduler is not None
    assert scheduler._brackets[0]._rungs[-1][0] == 2
    assert tuning._scheduler(sweep(epochs=8, scheduler="none")) is None
    assert tuning._scheduler(sweep(epochs=1)) is None


def test_more_than_the_cluster_has_is_refused(ray_session: None, person_samples: str, tmp_path: Path) -> None:
    train = TrainConfig(samples_uri=person_samples, runs_uri=str(tmp_path), name="sweep", num_workers=4, cpus_per_worker=4)
    with pytest.raises(ValueError, match="one trial needs 16 CPUs and 0 GPUs, the cluster has 6 CPUs"):
        tuning.tune(TuneConfig(train=train))


def test_trials_which_run_elsewhere_get_absolute_uris(
    ray_session: None, person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TuneConfig] = []

    def stop(trainable: Any, config: TuneConfig, data: Any) -> None:
        given.append(config)
        raise InterruptedError

    monkeypatch.setattr(tuning.ray.tune, "with_parameters", stop)
    monkeypatch.chdir(Path(person_samples).parent)
    train = TrainConfig(samples_uri=Path(person_samples).name, runs_uri="runs", name="sweep", model="resnet10t")
    with pytest.raises(InterruptedError):
        tuning.tune(TuneConfig(train=train))
    assert given[0].train.samples_uri == person_samples
    assert given[0].train.runs_uri == str(Path(person_samples).parent / "runs")
    assert given[0].train.weights == ("none",)
