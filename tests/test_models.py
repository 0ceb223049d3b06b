"""models.py: the paper's networks, round trips, and weights that fit in part or not at all."""

import dataclasses
import io
import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from posepipe import backbones, weights
from posepipe.heads import HEADS, NEED_MAPS
from posepipe.model_file import MODEL_FILE, ModelConfig, read_model_config
from posepipe.models import build_model, load_model, save_model
from posepipe.storage import sha256
from posepipe.weights import load_weights

CONFIG = ModelConfig(
    task="pose",
    model="test_resnet",
    regression_head="direct",
    feature_stride=32,
    size=(64, 64),
    framing="person",
    mean_points=[[0.5, 0.25]] * 16,
    samples_fingerprint="abc",
)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_efficientnet"])
@pytest.mark.parametrize(("stride", "index"), [(2, 0), (4, 1)])
def test_a_cut_network_has_no_blocks_that_nobody_sees_and_gives_the_same_features(name, stride, index):
    whole = timm.create_model(name, features_only=True, out_indices=(index,)).eval().to(memory_format=torch.channels_last)
    network = build(model=name, feature_stride=stride).backbone
    assert len(network.blocks) < len(whole.blocks)
    assert all(parameter.requires_grad for parameter in network.parameters())
    whole.load_state_dict(network.state_dict(), strict=False)
    crop = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network(crop), whole(crop), rtol=0, atol=0)


def test_blocks_without_parameters_stay():
    network = nn.Module()
    network.blocks = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    network.forward = lambda crop: network.blocks(crop)
    assert [tuple(maps.shape) for maps in backbones._probe(network, (8, 8))] == [(1, 4, 6, 6)]
    assert len(network.blocks) == 2


def build(**changes):
    torch.manual_seed(0)
    if changes.get("task") == "head":
        changes = {"mean_points": [[0.5, 0.25]] * 2, **changes}
    return build_model(dataclasses.replace(CONFIG, **changes)).eval()


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def pictures(count=2, size=64):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def write_state(tmp_path):
    def write(state, name="weights.pt"):
        path = tmp_path / name
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path)
        return str(path)

    return write


# Networks


@pytest.mark.parametrize(("task", "parameters"), [("head", 58_297_732), ("pose", 58_412_448)])
def test_deeppose_has_the_papers_number_of_parameters(task, parameters):
    with torch.device("meta"):
        model = build_model(dataclasses.replace(CONFIG, task=task, model="deeppose", regression_head="paper", size=(220, 220)))
    assert num_parameters(model) == parameters


@pytest.mark.parametrize(("task", "points"), [("head", 2), ("pose", 16)])
def test_resnet50_v2_regresses_4_or_32_numbers(task, points):
    model = build(task=task, model="resnetv2_50", regression_head="paper")
    assert model.head.linear.in_features == 2048
    with torch.inference_mode():
        assert model(pictures()).shape == (2, points, 2)


@pytest.mark.parametrize("size", [29, 64, 100, 221])
def test_deeppose_takes_crops_of_any_size_from_29(size):
    with torch.device("meta"):
        model = build_model(dataclasses.replace(CONFIG, model="deeppose", size=(size, size)))
        assert model(torch.empty(2, 3, size, size)).shape == (2, 16, 2)


@pytest.mark.parametrize("shape", [(2, 7, 5, 6), (1, 3, 4, 4), (0, 6, 2, 2)])
def test_the_local_response_norm_is_torchs_and_has_its_gradient(shape):
    torch.manual_seed(0)
    values = (10 * torch.randn(shape)).requires_grad_()
    found, wanted = (norm(5)(values) for norm in (backbones.LocalResponseNorm, nn.LocalResponseNorm))
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(shape)
    torch.testing.assert_close(*(torch.autograd.grad((each * weights).sum(), values)[0] for each in (found, wanted)))


@pytest.mark.parametrize(("model", "size"), [("densenet121", (100, 100)), ("convnext_atto", (100, 72)), ("test_resnet", (100, 72))])
def test_simcc_fits_the_map_however_the_network_rounds(model, size):
    built = build(model=model, regression_head="simcc", size=size)
    with torch.inference_mode():
        points, _ = built.eval().predict(torch.zeros(1, 3, size[1], size[0], dtype=torch.uint8))
    assert points.shape == (1, 16, 2)


def test_deeppose_refuses_smaller_crops():
    with pytest.raises(ValueError, match="deeppose needs crops of at least 29 px, got 28 x 28"):
        build(model="deeppose", size=(28, 28))


@pytest.mark.parametrize("regression_head", HEADS)
@pytest.mark.parametrize("task", ["head", "pose"])
def test_every_head_predicts_points_in_the_crops_frame(regression_head, task):
    model = build(regression_head=regression_head, task=task)
    with torch.inference_mode():
        points, confidence = model.predict(pictures())
    num_points = {"head": 2, "pose": 16}[task]
    assert points.shape == (2, num_points, 2)
    if regression_head in NEED_MAPS:
        assert confidence.shape == (2, num_points)
        assert ((confidence > 0) & (confidence <= 1)).all()
        assert ((points >= -0.5) & (points <= 63.5)).all()
    elif regression_head == "rle":
        assert ((confidence > 0) & (confidence < 1)).all()
    else:
        assert confidence is None


@pytest.mark.parametrize(("feature_stride", "channels"), [(32, 96), (31, 192), (16, 192), (8, 48), (4, 32)])
def test_a_backbone_is_cut_at_the_last_stage_within_the_stride(feature_stride, channels):
    model = build(feature_stride=feature_stride)
    assert model.head.linear.in_features == channels
    with torch.inference_mode():
        assert model(pictures()).shape == (2, 16, 2)


@pytest.mark.parametrize("feature_stride", [32, 16, 8])
def test_a_heatmap_of_a_cut_backbone_still_has_stride_4(feature_stride):
    with torch.inference_mode():
        assert build(feature_stride=feature_stride, regression_head="heatmap")(pictures()).shape == (2, 16, 16, 16)


def test_a_backbone_whose_features_begin_with_its_second_stage_is_cut_at_the_right_one():
    # timm gives DLA's features from stride 2 on, its stages begin at 1.
    assert backbones.build_backbone("dla46x_c", (64, 64), 16, all_maps=False).strides == (16,)
    assert backbones.build_backbone("dla46x_c", (64, 64), 32, all_maps=True).strides == (4, 8, 16, 32)


# Mistakes


def test_maps_that_are_all_as_coarse_are_no_pyramid():
    with pytest.raises(ValueError, match=r"test_vit gives maps of strides \[16, 16, 16\], of which none is finer"):
        backbones.build_backbone("test_vit", (160, 160), 16, all_maps=True)


def test_an_unknown_model_names_choices():
    with pytest.raises(ValueError, match=r"unknown model 'resnet_50'; choices: deeppose or a timm backbone such as .*resnet"):
        build(model="resnet_50")
    with pytest.raises(ValueError, match="such as resnetv2_50, resnet18"):
        build(model="zzzz")


def test_a_stride_below_every_stage_is_refused():
    with pytest.raises(ValueError, match=r"test_resnet has stages of stride \[2, 4, 8, 16, 32\], none is at most --feature-stride 1"):
        build(feature_stride=1)


def test_deeppose_has_no_feature_map_for_heatmaps():
    with pytest.raises(ValueError, match="deeppose has no feature map for the heatmap head; choices: direct, paper, rle"):
        build(model="deeppose", regression_head="heatmap")


# Pixels


@pytest.mark.parametrize("model", ["test_resnet", "deeppose"])
def test_bytes_and_floats_of_the_same_pixels_agree(model):
    model = build(model=model)
    with torch.inference_mode():
        torch.testing.assert_close(model(pictures()), model(pictures().float()), rtol=0, atol=0)


def test_pixel_scaling_is_part_of_the_model():
    # The backbone alone, fed by hand with (pixel / 255 - mean) / std of its own timm config.
    model = build()
    data = timm.data.resolve_data_config({}, model=timm.create_model("test_resnet"))
    mean, std = (torch.tensor(data[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        by_hand = model.head([model.backbone((pictures().float() / 255 - mean) / std)])
        torch.testing.assert_close(model(pictures()), by_hand, rtol=1e-4, atol=1e-5)


def test_deeppose_sees_pixels_from_0_to_1():
    model = build(model="deeppose")
    with torch.inference_mode():
        torch.testing.assert_close(model(pictures()), model.head([model.backbone(pictures() / 255)]), rtol=1e-5, atol=1e-6)


# Save and load


@pytest.mark.parametrize("changes", [{}, {"regression_head": "heatmap", "task": "head", "feature_stride": 16}, {"model": "resnetv2_50"}])
def test_a_loaded_model_gives_the_same_bits(tmp_path, changes):
    model = build(**changes).train()
    with torch.no_grad():
        model(pictures())  # moves the statistics of BatchNorm away from their start
    save_model(model, str(tmp_path / MODEL_FILE))
    loaded, model_id = load_model(str(tmp_path))
    assert not loaded.training
    assert loaded.config == model.config
    assert model_id == sha256((tmp_path / MODEL_FILE).read_bytes())
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pictures()), model.eval()(pictures()), rtol=0, atol=0)


def test_a_checkpoint_is_found_by_its_file_or_its_folder(tmp_path):
    save_model(build(), str(tmp_path / MODEL_FILE))
    assert load_model(str(tmp_path))[1] == load_model(str(tmp_path / MODEL_FILE))[1] == load_model(f"file://{tmp_path}/")[1]
    assert read_model_config(str(tmp_path)) == (build().config, load_model(str(tmp_path))[1])


def test_pixels_are_scaled_as_in_training_whatever_timm_says_later(tmp_path, monkeypatch):
    model = build()
    save_model(model, str(tmp_path / "new.safetensors"))
    config = {name: value for name, value in dataclasses.asdict(model.config).items() if name not in ("mean", "std")}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "older.safetensors", metadata={"config": json.dumps(config)})
    monkeypatch.setattr(timm.data, "resolve_data_config", lambda *_, **__: {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    (new, _), (older, _) = (load_model(str(tmp_path / f"{name}.safetensors")) for name in ("new", "older"))
    assert torch.equal(new.mean, model.mean)
    assert torch.equal(new.std, model.std)
    # Files of older versions do not say it.
    torch.testing.assert_close(older.mean.flatten(), 255 * torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(older.std.flatten(), 255 * torch.tensor([0.4, 0.5, 0.6]))


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_model(build(), str(tmp_path / name))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_checkpoint_whose_tensors_are_not_those_of_this_version_is_refused(tmp_path):
    model = build()
    tensors = {name.replace("head.", "regressor."): tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = str(tmp_path / MODEL_FILE)
    save_model(model, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"was written by another version of posepipe or of its libraries: Error.*Missing key.*head\."):
        load_model(str(tmp_path))


# Weights to start from


def whole_state():
    state = build().backbone.state_dict()
    return {name: torch.randn(tensor.shape) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "a.b.c."])
def test_a_whole_state_dict_is_loaded_whatever_its_prefix(write_state, name, prefix):
    state = whole_state()
    model = build()
    report = load_weights(model, [write_state({prefix + key: value for key, value in state.items()}, name)])
    assert (report.missing, report.unused) == ([], [])
    assert report.loaded == sorted(state)
    for key, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_state_dict_inside_a_checkpoint_is_found(write_state, key):
    report = load_weights(build(), [write_state({key: whole_state(), "epoch": 3})])
    assert report.missing == report.unused == []


def test_what_is_missing_and_what_is_unused_is_named(write_state):
    state = whole_state()
    first, second = [name for name in state if name.endswith("conv1.weight")][:2]
    del state[first]
    state[second] = torch.zeros(1, 1)  # another shape
    state["fc.weight"] = torch.zeros(3)
    model = build()
    before = model.backbone.state_dict()[second].clone()
    report = load_weights(model, [write_state(state)])
    assert report.missing == [first, second]
    assert sorted(report.unused) == sorted([second, "fc.weight"])
    torch.testing.assert_close(model.backbone.state_dict()[second], before, rtol=0, atol=0)


def test_the_counter_of_batchnorm_is_not_missing(write_state):
    report = load_weights(build(), [write_state({name: value for name, value in whole_state().items() if "num_batches" not in name})])
    assert report.missing == []


def test_later_files_go_over_earlier_ones(write_state):
    state = whole_state()
    name = next(iter(state))
    model = build()
    report = load_weights(model, [write_state(state, "a.pt"), write_state({name: torch.full_like(state[name], 7.0)}, "b.pt")])
    assert report.missing == []
    assert (model.backbone.state_dict()[name] == 7).all()


def test_another_runs_model_gives_its_head_where_that_is_the_same(tmp_path):
    trained = build(regression_head="unet", feature_stride=16)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    path = str(tmp_path / MODEL_FILE)
    save_model(trained, path)
    same = build(regression_head="unet", feature_stride=16)
    report = load_weights(same, [path])
    assert (report.missing, report.unused) == ([], [])
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in same.state_dict().items())
    other = build(regression_head="heatmap", feature_stride=16)
    report = load_weights(other, [path])
    assert report.missing == []
    assert set(report.unused) == {f"head.{name}" for name in trained.head.state_dict()}
    assert not any(name.startswith("head.") for name in report.loaded)


def test_a_head_of_another_meaning_is_left_where_it_is(tmp_path):
    path = str(tmp_path / MODEL_FILE)
    save_model(build(regression_head="paper", size=(64, 64)), path)
    for other in (build(regression_head="direct", size=(64, 64)), build(regression_head="paper", size=(96, 96))):
        before = {name: tensor.clone() for name, tensor in other.head.state_dict().items()}
        report = load_weights(other, [path])
        assert set(report.unused) == {"head.linear.weight", "head.linear.bias"}
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.head.state_dict().items())
    same = build(regression_head="paper", size=(64, 64))
    assert load_weights(same, [path]).unused == []


def test_no_sources_load_nothing():
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_weights(model, []) == type(load_weights(model, []))([], [], [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_of_which_nothing_fits_is_refused(write_state):
    with pytest.raises(ValueError, match=r"no tensor of .*weights.pt fits test_resnet: it has a, b, …; expected conv1\.0\.weight"):
        load_weights(build(), [write_state({"a": torch.zeros(1), "b": torch.zeros(1)})])


@pytest.mark.parametrize("contents", [[1, 2], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_what_is_no_state_dict_is_refused(write_state, contents):
    with pytest.raises(ValueError, match=r"weights\.pt holds no state dict"):
        load_weights(build(), [write_state(contents)])


def test_pickled_objects_are_refused(write_state):
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        load_weights(build(), [write_state(build())])


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_bytes_that_are_no_weights_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>404</html>" * 10)
    with pytest.raises(ValueError, match=f"{name} is not a file of plain tensors"):
        load_weights(build(), [str(tmp_path / name)])


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    sink = io.BytesIO()
    torch.save({"state_dict": Evil()}, sink)
    (tmp_path / "evil.pt").write_bytes(sink.getvalue())
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        load_weights(build(), [str(tmp_path / "evil.pt")])
    assert not (tmp_path / "owned").exists()


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no weights at .*nothing.pt; expected `imagenet` or the URI of a state dict"):
        load_weights(build(), [str(tmp_path / "nothing.pt")])


def test_a_network_that_timm_has_no_weights_for_is_refused():
    with pytest.raises(ValueError, match="timm has no ImageNet weights for resnet200; give a URI, or none"):
        weights._imagenet_weights("resnet200")


def test_weights_that_cannot_be_downloaded_are_refused_with_what_else_to_give(monkeypatch):
    def is_offline(*args, **kwargs):
        raise FileNotFoundError("no connection, and nothing in the cache")

    monkeypatch.setattr(weights.timm, "create_model", is_offline)
    with pytest.raises(
        ValueError, match=r"weights of resnet18 from Hugging Face: no connection.*; give the URI of a state dict as --weights, or none"
    ):
        weights._imagenet_weights("resnet18")


def test_deeppose_has_no_imagenet_weights():
    with pytest.raises(ValueError, match="there are no ImageNet weights for deeppose; give a URI, or none"):
        load_weights(build(model="deeppose"), ["imagenet"])


def test_the_real_resnet18_lacks_what_its_readme_says(shared_data):
    folder = shared_data / "weights"
    files = [str(folder / name) for name in ("resnet18_imagenet_to_layer3.pt", "resnet18_bn_calibrated.pt")]
    model = build(model="resnet18")
    report = load_weights(model, files)
    convolutions = {f"layer4.{block}.conv{number}.weight" for block in (0, 1) for number in (1, 2)}
    assert {name for name in report.missing if "conv" in name} == convolutions
    assert {name.rpartition(".")[0] for name in set(report.missing) - convolutions} == {
        f"layer4.{block}.bn{number}" for block in (0, 1) for number in (1, 2)
    }
    assert report.unused == []
    # Cut after layer3, where all is there.
    cut = load_weights(build(model="resnet18", feature_stride=16), files)
    assert cut.missing == []
    assert all(name.startswith("layer4.") for name in cut.unused)


def test_a_stride_that_would_have_no_effect_is_refused():
    with pytest.raises(ValueError, match="deeppose cannot be cut: --feature-stride must stay 32, got 16"):
        build(model="deeppose", feature_stride=16)
