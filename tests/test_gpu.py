"""On a GPU: the same as on a CPU, no step waits for the device, the same bits where they are asked for. Skipped without one."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_augmentation import MARGIN, POSE, generator, poses
from test_ensemble import CROPS, FRAMES, checkpoint, ensemble
from test_train_steps import NUM_SAMPLES, Cache, batch_with, nothing_done, poisoned, steps_of
from test_training import config, without_clock

from posepipe import predictions, scoring, storage, train_loop, training
from posepipe.augmentation import augment
from posepipe.batches import read_ahead, split_batches
from posepipe.config import ScoreConfig
from posepipe.train_steps import NonFiniteError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

HEADS = ("paper", "direct", "rle", "simcc", "heatmap", "unet")


def test_augmentation_draws_and_gives_what_it_does_on_the_cpu():
    pixels = torch.randint(0, 256, (32, 3, 144, 112), dtype=torch.uint8, generator=generator())
    points = poses(32)
    wanted, found = (
        augment(pixels.to(device), points, POSE, generator(3), (0, 1), MARGIN) for device in (torch.device("cpu"), torch.device("cuda"))
    )
    assert torch.equal(found[1], wanted[1])
    difference = (found[0].cpu() - wanted[0]).abs()
    # At the rim of a rectangle, or of what is stored, a rounding decides on a whole pixel.
    assert difference.mean() < 1e-2
    assert (difference > 0.5).float().mean() < 1e-3


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_on_the_gpu_is_one_on_the_cpu(head, precision):
    losses = []
    for device in ("cpu", "cuda"):
        steps, _ = steps_of(Cache(), device, model="resnet18", regression_head=head, precision=precision)
        progress = nothing_done()
        steps.run_epoch(progress)
        losses.append(progress.losses)
        assert len(progress.losses) == 3
    # Of the first step: what rounding does to the weights is no longer small after the second.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=2e-3 if precision == "float32" else 5e-2)


@pytest.mark.parametrize(
    ("model", "head"), [*(("resnet18", head) for head in ("direct", "simcc", "heatmap", "unet")), ("deeppose", "paper")]
)
def test_no_step_waits_for_the_device(model, head):
    class Pinned(Cache):
        """As SampleCache beside a GPU."""

        def with_margin(self, indices):
            return super().with_margin(indices).pin_memory()

    steps, _ = steps_of(Pinned(), "cuda", model=model, regression_head=head, precision="bfloat16", clip_norm=1.0, ema_decay=0.9)
    steps.run_epoch(nothing_done())
    batches = split_batches(torch.arange(NUM_SAMPLES), 4)
    torch.cuda.synchronize()
    with read_ahead(functools.partial(steps._fetch, 0), enumerate(batches)) as fetched:
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                outcomes = [steps._step(batch, step, fetched, nothing_done()) for step, batch in enumerate(batches)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(outcome is not None and outcome.arrival is not None for outcome in outcomes)
    # Of what torch knows nothing: a copy from other memory than pinned waits for all that was launched before.
    copies = {event.key for event in profile.key_averages() if event.key.startswith("Memcpy")}
    assert copies
    assert not [name for name in copies if "Pageable" in name]


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_loss_that_is_not_finite_stops_with_its_own_step_and_samples(checkpoint_every):
    """With 0 when the step after it has been launched already."""
    step, ids = batch_with(5)
    steps, saved = steps_of(poisoned(5), "cuda", missing_joints="zero", augment=False, checkpoint_every=checkpoint_every)
    launched = []
    steps.own.register_forward_hook(lambda *_: launched.append(None))
    with pytest.raises(NonFiniteError, match=rf"the loss is inf in epoch 1, step {step}; the samples of the batch: ") as error:
        steps.run_epoch(nothing_done())
    assert set(str(error.value).partition("batch: ")[2].partition(";")[0].split(", ")) == ids
    assert len(launched) == step + (not checkpoint_every)
    assert len(saved) == (step - 1) * checkpoint_every, "nothing is kept of weights that a bad step has touched"


def test_a_step_that_is_left_out_leaves_no_trace():
    step, _ = batch_with(5)
    steps, saved = steps_of(poisoned(5), "cuda", missing_joints="zero", augment=False, on_nonfinite="skip", checkpoint_every=1)
    progress = nothing_done()
    steps.run_epoch(progress)
    assert [math.isnan(loss) for loss in progress.losses] == [number == step for number in (1, 2, 3)]
    assert all(torch.isfinite(values).all() for values in steps.own.state_dict().values())
    assert [each[0].step for each in saved] == [1, 2]


@pytest.mark.parametrize(
    ("model", "head"), [*(("resnet18", head) for head in HEADS), *(("deeppose", head) for head in ("paper", "direct", "rle"))]
)
def test_every_network_has_a_deterministic_step(monkeypatch, model, head):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    kept = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    train_loop.make_deterministic()
    try:
        states = []
        for _ in range(2):
            steps, _ = steps_of(Cache(), "cuda", model=model, regression_head=head, precision="bfloat16")
            steps.run_epoch(nothing_done())
            states.append({name: values.cpu() for name, values in steps.own.state_dict().items()})
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = kept


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"model": "resnet18", "regression_head": "unet"}, {"flip_test": True, "test_scales": (0.9, 1.0, 1.1)}),
        ({"model": "resnet18", "regression_head": "simcc"}, {"flip_test": True}),
        ({"model": "resnetv2_50", "regression_head": "direct", "feature_stride": 32}, {}),
    ],
)
def test_networks_give_the_points_of_the_cpu(tmp_path, monkeypatch, changes, options):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    read = checkpoint(tmp_path / "run", **changes)
    crops = np.concatenate([CROPS] * 3)
    frames = np.concatenate([FRAMES] * 3, axis=1)
    [(_, wanted, confidence)], [(_, found, own_confidence)], [(_, again, _)] = (
        ensemble(read, use_gpu=use_gpu, **options).predict(crops.tobytes(), frames) for use_gpu in (False, True, True)
    )
    assert np.array_equal(found, again), "the same shard gives the same bytes"
    # Untrained maps are nearly flat, so a rounding may choose another peak.
    assert np.median(np.abs(found - wanted)) < 0.05
    if confidence is not None:
        np.testing.assert_allclose(own_confidence, confidence, atol=1e-2)


def test_nothing_to_predict_is_nothing(tmp_path):
    read = checkpoint(tmp_path / "run")
    [(_, points, confidence)] = ensemble(read, use_gpu=True).predict(b"", FRAMES[:, :0])
    assert points.shape == (0, 16, 2)
    assert confidence is None


@pytest.fixture(scope="module")
def trained(person_samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run in mixed precision, whose weights are averaged."""
    runs = tmp_path_factory.mktemp("runs")
    result = training.train(config(person_samples, runs, "gpu", use_gpu=True, precision="bfloat16", epochs=3, ema_decay=0.9))
    return str(result["run_uri"])


def test_a_run_uses_the_gpu_and_says_how_much_memory(trained: str) -> None:
    history = json.loads((Path(trained) / "history.json").read_text())
    assert len(history) == 3
    assert all(row["gpu_memory_bytes"] > 0 for row in history)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_deterministic_runs_end_with_the_same_bits(person_samples: str, tmp_path: Path) -> None:
    settings = {"use_gpu": True, "precision": "bfloat16", "deterministic": True, "regression_head": "unet"}
    results = [training.train(config(person_samples, tmp_path, name, **settings)) for name in ("one", "two")]
    one, two = ((Path(result["run_uri"]) / "model.safetensors").read_bytes() for result in results)
    assert one == two
    histories = [storage.read_json(str(Path(result["run_uri"]) / "history.json")) for result in results]
    one, two = ([{**row, "gpu_memory_bytes": None} for row in without_clock(history)] for history in histories)
    assert one == two


def test_scoring_on_the_gpu_is_scoring_on_the_cpu(person_samples: str, trained: str, tmp_path: Path) -> None:
    tables = []
    for name, changes in (("cpu", {}), ("gpu", {"use_gpu": True}), ("again", {"use_gpu": True})):
        run = ScoreConfig(
            checkpoint_uri=(trained,), samples_uri=person_samples, predictions_uri=str(tmp_path / name), shard_size=4, **changes
        )
        scoring.score(run)
        tables.append(predictions.read_predictions(str(tmp_path / name)).sort_by("sample_id"))
    cpu, gpu, again = (np.array(table["joints"].to_pylist()) for table in tables)
    assert len(cpu) > 4
    assert np.median(np.abs(gpu - cpu)) < 0.1
    assert np.array_equal(gpu, again)
