"""ensemble.py: real networks on a device, their pixels, their precision and what is folded into them. Stubs: test_predicting.py."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from test_scoring import write_checkpoint
from torch import nn

import posepipe.ensemble as ensemble_module
from posepipe.ensemble import Ensemble
from posepipe.geometry import frame_image
from posepipe.model_file import MODEL_FILE, read_checkpoint
from posepipe.models import load_model, save_model

SIZE = (64, 96)
CROPS = np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), dtype=np.uint8)
FRAMES = np.stack([np.eye(2, 3), frame_image(640, 480, SIZE), 2 * np.eye(2, 3)])[None]


def ensemble(*checkpoints, **changes):
    sizes = sorted({checkpoint.size for checkpoint in checkpoints})
    values = {"batch_size": 2, "num_threads": 1, "use_gpu": False, "flip_test": False, "test_scales": (1.0,), "precision": "float32"}
    return Ensemble(checkpoints, sizes, **{**values, **changes})


def checkpoint(folder, **changes):
    return read_checkpoint(write_checkpoint(folder, **{"model": "test_resnet", "size": SIZE, **changes}))


def live_statistics(folder, **changes):
    """A checkpoint whose BatchNorms scale and shift, as those of a trained network do, and the model itself."""
    uri = write_checkpoint(folder, **{"size": SIZE, **changes})
    model, _ = load_model(uri)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values += 0.5 * torch.rand(values.shape, generator=generator)
    save_model(model, f"{uri}/{MODEL_FILE}")
    return read_checkpoint(uri), load_model(uri)[0]


def test_a_checkpoint_that_changed_on_the_way_is_not_scored_with(tmp_path):
    with pytest.raises(RuntimeError, match=r"changed while it was scored with: model older became [0-9a-f]{64}"):
        ensemble(replace(checkpoint(tmp_path / "a"), model_id="older"))


def test_a_real_model_predicts_as_its_own_predict_does(tmp_path):
    read = checkpoint(tmp_path / "a")
    model, _ = load_model(read.uri)
    [(task, points, confidence)] = ensemble(read).predict(CROPS.tobytes(), FRAMES)
    with torch.inference_mode():
        points_crop, wanted = model.predict(torch.tensor(CROPS).permute(0, 3, 1, 2))
    assert task.column == "joints"
    # Folding changes the last bits of maps, which an untrained network has almost flat.
    np.testing.assert_allclose(points[0], points_crop[0].numpy(), atol=2e-3)
    # 64 x 96 of 640 x 480: image = (crop + 0.5) * (10, 5) - 0.5.
    np.testing.assert_allclose(points[1], (points_crop[1].numpy() + 0.5) * (10, 5) - 0.5, atol=2e-2)
    np.testing.assert_allclose(points[2], 2 * points_crop[2].numpy(), atol=4e-3)
    np.testing.assert_allclose(confidence, wanted.numpy(), atol=1e-6)


def test_mixed_precision_is_of_the_network_alone(tmp_path):
    read = checkpoint(tmp_path / "run")
    found, seen = [], []
    for precision in ("float32", "bfloat16"):
        models = ensemble(read, precision=precision)
        [model] = models.models
        next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)).register_forward_hook(
            lambda *args: seen.append(args[-1].dtype)
        )
        decode = model.head.decode
        model.head.decode = lambda output, decode=decode: (seen.append((output.dtype, torch.is_autocast_enabled("cpu"))), decode(output))[1]
        [(_, points, _)] = models.predict(CROPS.tobytes(), FRAMES)
        found.append(points)
    assert set(seen[:4]) == {torch.float32, (torch.float32, False)}
    assert set(seen[4:]) == {torch.bfloat16, (torch.float32, False)}
    assert not np.array_equal(*found)
    assert np.median(np.abs(found[0] - found[1])) < 0.5


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    "changes", [{"model": "test_resnet"}, {"model": "mobilenetv3_small_050", "regression_head": "direct", "feature_stride": 4}]
)
def test_as_many_threads_predict_at_a_time_as_there_are_sets_of_networks(tmp_path, monkeypatch, num_threads, changes):
    """A network may keep its features in itself on their way: timm collects some by hooks."""
    models = ensemble(checkpoint(tmp_path / "run", **changes), num_threads=num_threads)
    predict, inside, seen = ensemble_module.averaging.predict, [], []

    def slow(*args, **options):
        inside.append(None)
        seen.append(len(inside))
        time.sleep(0.1)
        inside.pop()
        return predict(*args, **options)

    monkeypatch.setattr(ensemble_module.averaging, "predict", slow)
    [(_, wanted, _)] = models.predict(CROPS.tobytes(), FRAMES)
    with ThreadPoolExecutor(3) as pool:
        found = [points for [(_, points, _)] in pool.map(lambda _: models.predict(CROPS.tobytes(), FRAMES), range(6))]
    assert max(seen) == num_threads
    assert all(np.array_equal(wanted, each) for each in found)


def test_no_two_threads_share_a_network(tmp_path):
    models = ensemble(checkpoint(tmp_path / "run"), num_threads=2)
    one, other = ({id(module) for model in models._free.get() for module in model.modules()} for _ in range(2))
    assert one
    assert not one & other


def test_a_thread_that_predicts_keeps_to_one_core(tmp_path, monkeypatch):
    models = ensemble(checkpoint(tmp_path / "run"), num_threads=2)
    predict, seen = ensemble_module.averaging.predict, []

    def counting(*args, **options):
        seen.append(torch.get_num_threads())
        return predict(*args, **options)

    monkeypatch.setattr(ensemble_module.averaging, "predict", counting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: models.predict(CROPS.tobytes(), FRAMES), range(4)))
    torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "test_resnet"},
        {"model": "resnet18", "feature_stride": 8},
        {"model": "resnetv2_18", "feature_stride": 32, "regression_head": "direct"},
        {"model": "test_efficientnet", "regression_head": "simcc"},
        {"model": "hrnet_w18_small", "feature_stride": 4, "regression_head": "unet"},
    ],
)
def test_folded_networks_give_what_the_networks_give(tmp_path, changes):
    read, model = live_statistics(tmp_path / "a", **changes)
    [folded] = ensemble(read).models
    crops = torch.tensor(CROPS).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found, wanted = folded(crops), model(crops)
        (_, confidence), (_, wanted_confidence) = folded.predict(crops), model.predict(crops)
    # Not their points: where two cells of a map are the highest, rounding decides which.
    for each, other in zip(*([output] if isinstance(output, torch.Tensor) else output for output in (found, wanted)), strict=True):
        torch.testing.assert_close(each, other, rtol=0, atol=1e-4 * other.abs().max().item())
    torch.testing.assert_close(confidence, wanted_confidence, rtol=0, atol=1e-4)
    assert not [module for module in folded.backbone.modules() if type(module) is nn.BatchNorm2d]


def test_networks_that_cannot_be_folded_stay_as_they_are(tmp_path, monkeypatch):
    """A trace that fails, a trace that loses what is collected by hooks, and one that is wrong."""

    class Asks(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, pixels):
            return self.network(pixels if pixels.sum() > 0 else -pixels)

    _, model = live_statistics(tmp_path / "a", model="test_resnet")
    crops = torch.tensor(CROPS).permute(0, 3, 1, 2).float()
    hooked = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2), feature_cls="hook").eval()
    for network in (Asks(model.backbone), hooked):
        assert ensemble_module._fold_batch_norm(network, SIZE) is network
        with torch.inference_mode():
            assert len(network(crops)) > 0
    monkeypatch.setattr(ensemble_module, "fuse", lambda network: nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert ensemble_module._fold_batch_norm(model.backbone, SIZE) is model.backbone
