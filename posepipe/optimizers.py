"""The optimizer of a training run, its learning rate from step to step, and the average of its weights."""

import math
import re
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from posepipe.config import TrainConfig
from posepipe.models import PoseModel

WARMUP = 0.03  # of all steps
STEP = 0.1
MOMENTUM = 0.9
EMA_WARMUP_POWER = 2 / 3  # 0.99 after 1,000 steps, 0.999 after 31,600, 0.9999 after a million


def build_optimizer(model: PoseModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD of all trained parameters, in groups where weight decay or learning rate differ."""
    blocks = list(dict.fromkeys(_block(name) for name, parameter in model.backbone.named_parameters() if parameter.requires_grad))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.removeprefix("backbone.")
            depth = 0 if in_backbone == name else len(blocks) - 1 - blocks.index(_block(in_backbone))
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((config.learning_rate * config.layer_decay**depth, decay), []).append(parameter)
    parameters = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    # Fused: one pass over the weights, where there would be one for each term of the formula.
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](parameters, lr=config.learning_rate, fused=True)


def _block(name: str) -> str:
    """The block of a backbone that a parameter belongs to: `layer1.0.conv1.weight` -> `layer1.0`, `conv1.weight` -> `conv1`, and
    `stages.0.blocks.1.conv1.weight` -> `stages.0.blocks.1`, also where timm has cut the network and names it `stages_0.blocks.1`."""
    parts = re.sub(r"_(?=\d)", ".", name).split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    within = [place for place in numbers if parts[place - 1] == "blocks"]
    return ".".join(parts[: ((within or numbers or [0])[0]) + 1])


def require_schedule(config: TrainConfig, num_steps: int) -> None:
    """ValueError where the warm-up leaves nothing of the schedule, over `num_steps` steps."""
    end = round(config.milestones[0] * num_steps) if config.schedule == "step" and config.milestones else num_steps
    if config.warmup_steps >= end:
        raise ValueError(
            f"--warmup-steps {config.warmup_steps} lasts until the learning rate should fall, after {end} of {num_steps} steps; "
            "-1 takes 3 % of them"
        )


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate over `num_steps` steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, num_steps))


def learning_rate_factor(config: TrainConfig, step: int, num_steps: int) -> float:
    """The factor on the learning rate at a step of num_steps."""
    warmup = config.warmup_steps
    if warmup < 0:
        warmup = 0 if config.schedule == "constant" else max(1, round(WARMUP * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_steps - warmup))))
    if config.schedule == "step":
        return STEP ** sum(step >= share * num_steps for share in config.milestones)
    return 1.0


def reached_decay(decay: float, num_steps: int) -> float:
    """How far the decay of a `WeightAverage` rises in `num_steps` steps: no further than `decay`, by timm's warm-up."""
    return min(decay, 1 - max(1, num_steps) ** -EMA_WARMUP_POWER)


class WeightAverage:
    """An exponential moving average of a model's weights and statistics. Its decay rises with the steps, or it would remember the start."""

    def __init__(self, model: PoseModel, decay: float) -> None:
        self._average = ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=EMA_WARMUP_POWER)
        self.num_steps = 0

    @property
    def model(self) -> PoseModel:
        """The averaged model, in eval mode."""
        averaged: Any = self._average.module
        return averaged

    def update(self, model: PoseModel) -> None:
        """After an optimizer step."""
        self.num_steps += 1
        self._average.update(model, step=self.num_steps)
