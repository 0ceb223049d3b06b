"""Backbone and regression head as one network; saved and loaded with its own config."""

import json
from dataclasses import asdict, replace
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from posepipe import storage
from posepipe.backbones import build_backbone
from posepipe.head_parts import HeadInput
from posepipe.heads import HEADS, NEED_ALL_MAPS, NEED_MAPS
from posepipe.model_file import ModelConfig, read_model_file
from posepipe.tasks import TASKS


class PoseModel(nn.Module):
    """Pixels (N, 3, H, W) in [0, 255], uint8 or float -> the regression head's raw output. Pixel scaling is part of the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        task, name = TASKS[config.task], config.regression_head
        backbone = build_backbone(config.model, config.size, config.feature_stride, name in NEED_ALL_MAPS)
        if name in NEED_MAPS and not backbone.strides[-1]:
            choices = ", ".join(choice for choice in HEADS if choice not in NEED_MAPS)
            raise ValueError(f"{config.model} has no feature map for the {name} head; choices: {choices}")
        self.backbone = backbone.network
        self.head = HEADS[name](
            HeadInput(
                channels=backbone.channels,
                strides=backbone.strides,
                cells=backbone.cells,
                num_points=task.num_points,
                size=config.size,
                mean_points=config.mean_points,
                direct_loss=config.direct_loss,
            )
        )
        # Kept with the weights: what timm says of a network may change from one version to the next.
        mean, std = config.mean or list(backbone.mean), config.std or list(backbone.std)
        self.config = replace(config, mean=mean, std=std)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        features = self.backbone((pixels.to(mean.dtype) - mean) / std)
        return self.head(features if isinstance(features, list) else [features])

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points (N, num_points, 2) in crop px and, where the head knows it, a confidence (N, num_points) in [0, 1]."""
        head: Any = self.head
        return head.decode(self(pixels))


def build_model(config: ModelConfig) -> PoseModel:
    """A model with random weights; ValueError for an unknown name, with the choices."""
    # Pixels come as rows of RGB triples; convolutions on CPUs and tensor cores are fastest on just that layout.
    with torch.inference_mode(False), torch.enable_grad():
        return PoseModel(config).to(memory_format=torch.channels_last)


def save_model(model: PoseModel, path: str) -> None:
    """One safetensors file with the config in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata={"config": json.dumps(asdict(model.config), sort_keys=True)})


def load_model(checkpoint_uri: str) -> tuple[PoseModel, str]:
    """The model at `checkpoint_uri` (a run folder, a checkpoint folder or the file itself) in eval mode, and its sha256.

    Raises:
        ValueError: there is no checkpoint, it was not written by `save_model`, or by that of another version.
    """
    data, config = read_model_file(checkpoint_uri)
    model = build_model(config)
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ValueError(f"{checkpoint_uri} was written by another version of posepipe or of its libraries: {lines[:300]}") from error
    return model.eval(), storage.sha256(data)
