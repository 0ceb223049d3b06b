"""optimizers.py: groups of parameters, schedules worked by hand, and an average that follows."""

import copy
import dataclasses
import math

import pytest
import timm
import torch
from test_global_batch import run_apart
from torch import nn

from posepipe.config import TrainConfig
from posepipe.model_file import ModelConfig
from posepipe.models import build_model
from posepipe.optimizers import (
    WeightAverage,
    _block,
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    reached_decay,
    require_schedule,
)

CONFIG = TrainConfig(samples_uri="samples", runs_uri="runs", name="run", learning_rate=0.1)


def model(backbone="resnet18", head="direct", feature_stride=32):
    return build_model(
        ModelConfig(
            task="head",
            model=backbone,
            regression_head=head,
            feature_stride=feature_stride,
            size=(64, 64),
            framing="person",
            mean_points=[[0.5, 0.5]] * 2,
            samples_fingerprint="",
        )
    )


def change(**values):
    return dataclasses.replace(CONFIG, **values)


def groups_by_parameter(own, config):
    found = {id(parameter): group for group in build_optimizer(own, config).param_groups for parameter in group["params"]}
    return {name: found[id(parameter)] for name, parameter in own.named_parameters() if id(parameter) in found}


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_norms_and_biases_are_not_decayed(layer_decay):
    own = model()
    for name, group in groups_by_parameter(own, change(weight_decay=0.05, layer_decay=layer_decay)).items():
        is_weight = own.get_parameter(name).ndim > 1
        assert group["weight_decay"] == (0.05 if is_weight else 0), name


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
@pytest.mark.parametrize("feature_stride", [16, 32])
def test_every_trained_parameter_has_one_group(layer_decay, feature_stride):
    own = model(head="unet", feature_stride=feature_stride)
    config = change(layer_decay=layer_decay)
    expected = {name for name, parameter in own.named_parameters() if parameter.requires_grad}
    assert set(groups_by_parameter(own, config)) == expected
    assert sum(len(group["params"]) for group in build_optimizer(own, config).param_groups) == len(expected)


@pytest.mark.parametrize("feature_stride", [16, 32])
def test_earlier_layers_learn_slower_and_the_head_at_the_full_rate(feature_stride):
    groups = groups_by_parameter(model(feature_stride=feature_stride), change(layer_decay=0.5))
    rate = {name: group["lr"] for name, group in groups.items()}
    assert rate["backbone.conv1.weight"] < rate["backbone.layer1.0.conv1.weight"] <= rate["backbone.layer2.0.conv1.weight"]
    last = "layer3" if feature_stride == 16 else "layer4"
    assert rate["backbone.layer2.0.conv1.weight"] < rate[f"backbone.{last}.0.conv2.weight"] == 0.05
    assert rate[f"backbone.{last}.1.conv2.weight"] == 0.1
    assert rate["head.linear.weight"] == 0.1


def test_a_block_is_the_same_in_a_network_that_is_cut():
    whole, cut = (timm.create_model("resnetv2_50", **options) for options in ({}, {"features_only": True, "out_indices": (3,)}))
    blocks = [{_block(name) for name, _ in network.named_parameters() if name.startswith("stages")} for network in (whole, cut)]
    assert blocks[1] == {block for block in blocks[0] if not block.startswith("stages.3")}
    assert len(blocks[0]) == 3 + 4 + 6 + 3
    assert [_block(name) for name in ("layer1.0.conv1.weight", "conv_stem.weight", "blocks.2.1.bn1.bias")] == [
        "layer1.0",
        "conv_stem",
        "blocks.2",
    ]


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizer_is_the_named_one(name, kind):
    optimizer = build_optimizer(model(), change(optimizer=name))
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    assert name != "sgd" or optimizer.param_groups[0]["momentum"] == 0.9


def gradients(own, seed):
    """Of a step: autograd's, which lie in memory as their parameters do."""
    own(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 255).square().sum().backward()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_steps_are_those_of_the_formula(name):
    config = change(optimizer=name, weight_decay=0.01, learning_rate=1e-3)
    torch.manual_seed(0)
    own = model("resnet10t")
    other = copy.deepcopy(own)
    fused, plain = build_optimizer(own, config), build_optimizer(other, config)
    for group in plain.param_groups:
        group["fused"] = False
    for seed in range(3):
        for each, optimizer in ((own, fused), (other, plain)):
            optimizer.zero_grad()
            gradients(each, seed)
            optimizer.step()
    for (parameter_name, one), two in zip(own.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=parameter_name)


def layouts(rank, world):
    """Which gradients lie otherwise than their parameters, of which a fused step on a CPU would make nonsense in silence."""
    own = model("resnet10t", head="unet")
    shared = nn.parallel.DistributedDataParallel(own) if world > 1 else own
    different = []
    for seed in range(2):
        gradients(shared, seed)
        for name, parameter in own.named_parameters():
            places = [
                [step for step, side in zip(each.stride(), each.shape, strict=True) if side > 1] for each in (parameter, parameter.grad)
            ]
            if places[0] != places[1]:
                different.append(name)
    return len(list(own.parameters())), different


def test_gradients_lie_in_memory_as_their_parameters_do_for_any_number_of_workers():
    for count, different in (layouts(0, 1), *run_apart(layouts, 2)):
        assert count > 20
        assert different == []


def test_schedules_by_hand():
    # 100 steps, so 3 of warm-up where nothing else is said.
    assert [learning_rate_factor(change(schedule="cosine"), step, 100) for step in (0, 2, 3, 100)] == pytest.approx([1 / 3, 1, 1, 0])
    assert learning_rate_factor(change(schedule="cosine", warmup_steps=0), 50, 100) == pytest.approx(0.5)
    assert [learning_rate_factor(change(schedule="step"), step, 100) for step in (3, 79, 80, 94, 95)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    assert [learning_rate_factor(CONFIG, step, 100) for step in (0, 99)] == [1, 1]
    assert [learning_rate_factor(change(warmup_steps=4), step, 100) for step in (0, 1, 3, 4)] == [0.25, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("settings", "end"), [({"schedule": "cosine"}, 100), ({}, 100), ({"schedule": "step", "milestones": (0.25, 0.5)}, 25)]
)
def test_a_warm_up_that_leaves_nothing_of_the_schedule_is_refused(settings, end):
    require_schedule(change(**settings), 100)
    require_schedule(change(**settings, warmup_steps=end - 1), 100)
    with pytest.raises(ValueError, match=rf"--warmup-steps {end} lasts until .* after {end} of 100 steps; -1 takes 3 %"):
        require_schedule(change(**settings, warmup_steps=end), 100)


def test_a_schedule_keeps_the_ratio_of_the_groups():
    optimizer = build_optimizer(model(), change(layer_decay=0.5))
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = build_schedule(optimizer, change(schedule="cosine", warmup_steps=0), 4)
    optimizer.step()
    schedule.step()
    factor = 0.5 * (1 + math.cos(math.pi / 4))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate * factor for rate in before])


def test_an_average_follows_weights_and_statistics():
    own = model("test_resnet")
    average = WeightAverage(own, 0.9)
    start = own.head.linear.weight.detach().clone()
    norm = next(module for module in own.modules() if isinstance(module, nn.BatchNorm2d))
    average_norm = next(module for module in average.model.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        own.head.linear.weight.add_(1)
        norm.running_mean.add_(1)
    average.update(own)
    assert not average.model.training
    moved = (average.model.head.linear.weight - start).mean().item()
    # The decay is still small: the start is soon forgotten.
    assert 0.1 < moved <= 1
    assert average_norm.running_mean.mean().item() == pytest.approx(moved, abs=1e-5)
    for _ in range(200):
        average.update(own)
    torch.testing.assert_close(average.model.head.linear.weight, own.head.linear.weight)
    assert average.num_steps == 201


def test_how_far_the_decay_of_an_average_rises_by_hand():
    # 1,000 ^ (-2/3) = 0.01 and 8 ^ (-2/3) = 0.25; nothing is remembered of what was before the first step.
    assert [reached_decay(0.999, steps) for steps in (1, 8, 1000)] == pytest.approx([0, 0.75, 0.99])
    assert [reached_decay(decay, 100_000) for decay in (0.9, 0.99, 0.999)] == [0.9, 0.99, 0.999]


@pytest.mark.parametrize("num_steps", [2, 8, 40])
def test_the_decay_that_an_average_reaches_is_that_of_its_last_step(num_steps):
    own = nn.Linear(1, 1, bias=False)
    average = WeightAverage(own, 0.9)
    own.weight.data.fill_(0)
    for _ in range(num_steps - 1):
        average.update(own)
    own.weight.data.fill_(1)
    average.update(own)
    assert average.model.weight.item() == pytest.approx(1 - reached_decay(0.9, num_steps))
