"""Validation by several workers, without Ray."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from test_global_batch import run_apart
from test_train_steps import NUM_SAMPLES, Cache, steps_of

from posepipe import train_loop


def validate(rank: int, world: int, missing_joints: str = "mask") -> tuple[float, dict[str, Any]]:
    """Loss and scores of an untrained model on some rows, which no number of workers divides; two people lack a joint."""
    cache: Any = Cache()
    cache.labels |= {
        "is_annotated": np.ones((NUM_SAMPLES, 16), dtype=bool),
        "head_size": np.linspace(1, 30, NUM_SAMPLES),
        "head_bone": np.linspace(2, 40, NUM_SAMPLES),
        "crop_to_image": np.tile(np.eye(2, 3), (NUM_SAMPLES, 1, 1)),
    }
    cache.labels["joints"][:2, :2], cache.labels["is_annotated"][:2, 0] = np.nan, False
    steps, _ = steps_of(cache)
    config = dataclasses.replace(steps.config, batch_size=2, missing_joints=missing_joints)
    loss, score = train_loop.evaluate(steps.own, steps.task, cache, np.arange(NUM_SAMPLES), config, (rank, world), torch.device("cpu"))
    return loss, score.summary()


def test_three_workers_score_every_row_once_and_come_to_the_score_of_one() -> None:
    loss, score = validate(0, 1)
    assert score["num_people"] == NUM_SAMPLES
    assert 0 < score["pckh"] < 1
    for other_loss, other_score in run_apart(validate, 3):
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert other_score == pytest.approx(score, nan_ok=True)


def test_the_validation_loss_is_of_what_is_trained() -> None:
    masked, score = validate(0, 1)
    zero, same_score = validate(0, 1, "zero")
    # A joint that is trained to lie at (0, 0) counts in one alone, and so do joints outside the crop.
    assert zero > masked
    assert same_score == pytest.approx(score, nan_ok=True)


def test_a_run_is_stalled_where_the_last_epochs_brought_nothing_better():
    def history(*scores):
        return [{"objective": score} for score in scores]

    rising = history(0.1, 0.2, 0.3, 0.4)
    stalled = history(0.1, 0.4, 0.3, 0.4)
    assert not train_loop.is_stalled(rising, 2)
    assert train_loop.is_stalled(stalled, 2)
    assert not train_loop.is_stalled(stalled, 3), "two epochs after the best one"
    assert not train_loop.is_stalled(stalled, 0)
    assert not train_loop.is_stalled(history(0.4, 0.3), 2)
    assert not train_loop.is_stalled([], 1)
