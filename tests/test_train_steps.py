"""Steps of one worker, without Ray: what is left out, and that a resumed epoch is the same epoch."""

import contextlib
import copy
import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posepipe import snapshots
from posepipe.batches import split_batches
from posepipe.checkpoints import Progress
from posepipe.config import TrainConfig
from posepipe.global_batch import GlobalBatch, share
from posepipe.model_file import ModelConfig
from posepipe.models import build_model
from posepipe.optimizers import WeightAverage
from posepipe.tasks import TASKS
from posepipe.train_steps import NonFiniteError, Steps, find_valid

NUM_SAMPLES, SIZE, MARGIN = 11, 32, 4


class Cache:
    """As SampleCache, of random pixels."""

    margin = (MARGIN, MARGIN)

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._pixels = torch.from_numpy(generator.integers(0, 256, (NUM_SAMPLES, 3, SIZE + 2 * MARGIN, SIZE + 2 * MARGIN), dtype=np.uint8))
        self.labels = {
            "sample_id": np.array([f"s{index}" for index in range(NUM_SAMPLES)]),
            "joints": generator.uniform(0, SIZE, (NUM_SAMPLES, 32)).astype(np.float32),
        }

    def __len__(self) -> int:
        return NUM_SAMPLES

    def pixels(self, indices: list[int]) -> torch.Tensor:
        return self._pixels[indices, :, MARGIN:-MARGIN, MARGIN:-MARGIN]

    def with_margin(self, indices: list[int]) -> torch.Tensor:
        return self._pixels[indices]


def steps_of(cache: Cache, device: str = "cpu", **changes: Any) -> tuple[Steps, list[tuple[Progress, dict[str, torch.Tensor]]]]:
    """Steps in batches of 4, 4 and 3, and the list of what they save."""
    values: dict[str, Any] = {"model": "resnet10t", "regression_head": "direct", "batch_size": 4, "augment": True, **changes}
    config = TrainConfig(samples_uri="samples", runs_uri="runs", name="run", **values)
    torch.manual_seed(0)
    own = build_model(
        ModelConfig(
            task="pose",
            model=config.model,
            regression_head=config.regression_head,
            feature_stride=32,
            size=(SIZE, SIZE),
            framing="person",
            mean_points=[[0.5, 0.5]] * 16,
            samples_fingerprint="",
        )
    )
    batch = GlobalBatch(0, 1)
    own.to(device)
    share(own, batch, torch.device(device))
    optimizer = torch.optim.Adam(own.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    average = WeightAverage(own, config.ema_decay) if config.ema_decay else None
    task = TASKS["pose"]
    truth = torch.from_numpy(task.truth(cache.labels)).float()
    saved: list[Any] = []

    def save(progress: Progress) -> None:
        saved.append(copy.deepcopy((progress, own.state_dict(), optimizer.state_dict(), schedule.state_dict())))

    return Steps(config, task, own, own, cache, truth, optimizer, schedule, average, batch, torch.device(device), save), saved  # type: ignore[arg-type]


def nothing_done() -> Progress:
    return Progress([], snapshots.SNAPSHOT.empty_table())


def poisoned(index: int) -> Cache:
    """One joint of one sample lies so far away that the square of its distance is no float32."""
    cache = Cache()
    cache.labels["joints"][index, 0] = 1e30
    return cache


def batch_with(index: int, epoch: int = 0) -> tuple[int, set[str]]:
    """The step (1-based) of an epoch that a sample is in, and the ids of its batch."""
    order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(epoch))
    batches = [batch.tolist() for batch in split_batches(order, 4)]
    step = next(step for step, batch in enumerate(batches) if index in batch)
    return step + 1, {f"s{member}" for member in batches[step]}


@pytest.mark.parametrize("model", ["resnet10t", "deeppose"])
def test_an_epoch_that_goes_on_after_a_step_ends_as_if_it_had_not_stopped(model: str) -> None:
    cache = Cache()
    whole, saved = steps_of(cache, model=model, checkpoint_every=1)
    progress = nothing_done()
    whole.run_epoch(progress)
    assert [each[0].step for each in saved] == [1, 2], "the end of the epoch is not its middle"
    resumed, _ = steps_of(cache, model=model)
    middle, weights, optimizer, schedule = saved[0]
    resumed.own.load_state_dict(weights)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.schedule.load_state_dict(schedule)
    resumed.run_epoch(middle)
    assert middle.losses == progress.losses
    assert middle.loss_sum == progress.loss_sum
    for name, tensor in whole.own.state_dict().items():
        assert torch.equal(tensor, resumed.own.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_with_the_place_and_all_samples_of_the_batch() -> None:
    step, ids = batch_with(5)
    steps, _ = steps_of(poisoned(5), missing_joints="zero", augment=False)
    with pytest.raises(NonFiniteError, match=rf"the loss is inf in epoch 1, step {step}; the samples of the batch: ") as error:
        steps.run_epoch(nothing_done())
    assert set(str(error.value).partition("batch: ")[2].partition(";")[0].split(", ")) == ids


def test_a_step_that_is_left_out_leaves_no_trace_in_weights_and_statistics() -> None:
    step, _ = batch_with(5)
    steps, saved = steps_of(poisoned(5), missing_joints="zero", augment=False, on_nonfinite="skip", checkpoint_every=1)
    progress = nothing_done()
    before = copy.deepcopy(steps.own.state_dict())
    steps.run_epoch(progress)
    assert [math.isnan(loss) for loss in progress.losses] == [number == step for number in (1, 2, 3)]
    states = [before, *(each[1] for each in saved), steps.own.state_dict()]
    for number in (1, 2, 3):
        same = all(torch.equal(tensor, states[number][name]) for name, tensor in states[number - 1].items())
        assert same == (number == step)
    assert all(torch.isfinite(tensor).all() for tensor in states[-1].values())
    assert progress.num_points == 16 * (NUM_SAMPLES - len(batch_with(5)[1]))


def test_a_gradient_that_is_not_finite_counts_like_a_loss() -> None:
    steps, _ = steps_of(Cache())
    steps.own.head.linear.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match=r"the largest gradient is (inf|nan) in epoch 1, step 1;"):
        steps.run_epoch(nothing_done())


def test_a_gradient_whose_square_is_no_float32_is_finite() -> None:
    steps, _ = steps_of(Cache())
    steps.own.head.linear.bias.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    progress = nothing_done()
    steps.run_epoch(progress)
    assert len(progress.losses) == 3
    assert all(torch.isfinite(parameter).all() for parameter in steps.own.parameters())


def test_an_epoch_whose_batches_are_fetched_ahead_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, ahead = steps_of(Cache())[0], steps_of(Cache())[0]
    ahead.run_epoch(nothing_done())
    monkeypatch.setattr("posepipe.train_steps.read_ahead", lambda fetch, items: contextlib.nullcontext(map(fetch, items)))
    whole.run_epoch(nothing_done())
    for name, tensor in whole.own.state_dict().items():
        assert torch.equal(tensor, ahead.own.state_dict()[name]), name


def test_an_epoch_of_nothing_but_skipped_steps_stops() -> None:
    steps, _ = steps_of(Cache(), on_nonfinite="skip")
    steps.own.head.linear.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match="all 3 steps of epoch 1 were left out"):
        steps.run_epoch(nothing_done())


def test_waiting_for_data_is_told_from_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("posepipe.train_steps.time", SimpleNamespace(monotonic=lambda: now[0]))
    cache = Cache()
    read = cache.with_margin

    def with_margin(indices: list[int]) -> torch.Tensor:
        now[0] += 3
        return read(indices)

    cache.with_margin = with_margin  # type: ignore[method-assign]
    # One step: there is nothing to be fetched meanwhile.
    steps, _ = steps_of(cache, batch_size=NUM_SAMPLES)
    steps.own.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 5))
    progress = nothing_done()
    steps.run_epoch(progress)
    assert progress.seconds == {"data": 3, "compute": 5, "checkpoint": 0}


def test_long_gradients_are_cut_and_short_ones_are_not():
    moved = {}
    for clip_norm in (0.0, 1e-3, 1e6):
        steps, _ = steps_of(Cache(), augment=False, learning_rate=1.0, clip_norm=clip_norm)
        steps = dataclasses.replace(steps, optimizer=torch.optim.SGD(steps.own.parameters(), lr=1.0))
        before = torch.cat([parameter.detach().flatten().clone() for parameter in steps.own.parameters()])
        batch = torch.arange(4)
        steps._step(batch, 0, iter([steps._fetch(0, (0, batch))]), nothing_done())
        moved[clip_norm] = (torch.cat([parameter.detach().flatten() for parameter in steps.own.parameters()]) - before).norm().item()
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[0.0] == moved[1e6] > 1e-3


def test_the_average_follows_the_steps_that_were_made():
    steps, _ = steps_of(poisoned(5), missing_joints="zero", augment=False, on_nonfinite="skip", ema_decay=0.9)
    steps.run_epoch(nothing_done())
    assert steps.average.num_steps == 2, "the third one was left out"


def test_joints_outside_the_crop_are_not_learned_but_boxes_that_reach_out_are():
    inside, outside = [10.0, 20.0], [40.0, 20.0]
    points = torch.tensor([[inside, outside, [math.nan, 1.0]]])
    assert find_valid(points, TASKS["pose"], (32, 48)).tolist() == [[True, False, False]]
    assert find_valid(points, TASKS["head"], (32, 48)).tolist() == [[True, True, False]]
