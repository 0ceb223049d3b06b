"""DeepPose CNN, residual backbones; save and load with their own config."""

import difflib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from posepipe import storage
from posepipe.head_parts import HeadInput
from posepipe.heads import HEADS, NEED_ALL_MAPS, NEED_MAPS
from posepipe.tasks import TASKS

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that is needed to build a model again and to feed it.

    Attributes:
        task: key of TASKS.
        model: key of MODELS or a timm name.
        regression_head: key of HEADS.
        feature_stride: a timm backbone is cut at the last stage with at most this stride.
        size: (width, height) crop px.
        framing: of the samples it was trained on.
        mean_points: (num_points, 2) mean of the training labels in the unit frame: the floor that a model has to beat.
        samples_fingerprint: of the manifest of those samples.
        direct_loss: of the direct head.
    """

    task: str
    model: str
    regression_head: str
    feature_stride: int
    size: tuple[int, int]
    framing: str
    mean_points: list[list[float]]
    samples_fingerprint: str
    direct_loss: str = "mse"


@dataclass(frozen=True)
class Backbone:
    """A network from (N, 3, H, W) scaled pixels to (N, channels) where the stride is 0, or to maps (N, channels, H / stride, W / stride).

    Attributes:
        network: gives one tensor or a list, the coarsest map last.
        channels: of each of them.
        strides: of each of them.
        mean: that pixels in [0, 1] are scaled with.
        std: the same.
    """

    network: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PoseModel(nn.Module):
    """Pixels (N, 3, H, W) in [0, 255], uint8 or float -> the regression head's raw output. Pixel scaling is part of the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        task, name = TASKS[config.task], config.regression_head
        backbone = _build_backbone(config.model, config.size, config.feature_stride, name in NEED_ALL_MAPS)
        if name in NEED_MAPS and not backbone.strides[-1]:
            choices = ", ".join(choice for choice in HEADS if choice not in NEED_MAPS)
            raise ValueError(f"{config.model} has no feature map for the {name} head; choices: {choices}")
        self.backbone = backbone.network
        self.head = HEADS[name](
            HeadInput(
                channels=backbone.channels,
                strides=backbone.strides,
                num_points=task.num_points,
                size=config.size,
                mean_points=config.mean_points,
                direct_loss=config.direct_loss,
            )
        )
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        features = self.backbone((pixels.to(mean.dtype) - mean) / std)
        return self.head(features if isinstance(features, list) else [features])

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points (N, num_points, 2) in crop px and, where the head knows it, a confidence (N, num_points) in [0, 1]."""
        head: Any = self.head
        return head.decode(self(pixels))


class SamePad(nn.ZeroPad2d):
    """Pads for a "same" convolution where the stride does not divide evenly: the odd pixel goes right and below, as in TensorFlow."""

    def __init__(self, size: tuple[int, int], kernel: int, stride: int) -> None:
        across, down = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in size)
        super().__init__((across // 2, across - across // 2, down // 2, down - down // 2))


def _build_deeppose(size: tuple[int, int], feature_stride: int) -> Backbone:
    """The paper's network up to its second fully connected layer (after Toshev, Szegedy: DeepPose, 2014)."""
    if feature_stride != 32:
        raise ValueError(f"deeppose cannot be cut: --feature-stride must stay 32, got {feature_stride}")
    num_cells = math.prod(-(-side // 4) // 2 // 2 // 2 for side in size)
    if not num_cells:
        raise ValueError(f"deeppose needs crops of at least 29 px, got {size[0]} x {size[1]}")
    network = nn.Sequential(
        SamePad(size, 11, 4),
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(inplace=True), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256 * num_cells, 4096), nn.ReLU(inplace=True), nn.Dropout(0.6)),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.6)),
    )
    return Backbone(network, (4096,), (0,), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


MODELS: dict[str, Callable[[tuple[int, int], int], Backbone]] = {"deeppose": _build_deeppose}
"""name -> (crop px, feature stride) -> backbone. Every other name is timm's."""

MIN_STRIDE = 4  # of the finest map that a head is given


def _build_backbone(name: str, size: tuple[int, int], feature_stride: int, all_maps: bool) -> Backbone:
    if name in MODELS:
        return MODELS[name](size, feature_stride)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=6) or ["resnetv2_50", "resnet18"]
        raise ValueError(f"unknown model {name!r}; choices: {', '.join(MODELS)} or a timm backbone such as {', '.join(near)}")
    try:
        reductions = timm.create_model(name, features_only=True).feature_info.reduction()
        fitting = [index for index, reduction in enumerate(reductions) if reduction <= feature_stride]
        if not fitting:
            raise ValueError(f"{name} has stages of stride {reductions}, none is at most --feature-stride {feature_stride}")
        if all_maps:
            network = timm.create_model(
                name, features_only=True, out_indices=[index for index in fitting if reductions[index] >= MIN_STRIDE]
            )
        elif fitting[-1] == len(reductions) - 1:
            # The whole network, with its final normalisation where it has one (ResNetV2).
            network = timm.create_model(name, num_classes=0, global_pool="")
        else:
            network = timm.create_model(name, features_only=True, out_indices=(fitting[-1],))
        features = _probe(network, size)
    except (RuntimeError, AssertionError) as error:
        text = f"{name} gives no feature map for crops of {size[0]} x {size[1]} px ({error})"
        raise ValueError(f"{text}; choices: deeppose or another backbone") from error
    strides = []
    for maps in features:
        across, down = (side / cells for side, cells in zip(size, maps.shape[:1:-1], strict=False)) if maps.ndim == 4 else (0, 1)
        if maps.ndim != 4 or round(math.log2(across)) != round(math.log2(down)):
            raise ValueError(f"{name} gives features of shape {tuple(maps.shape)}, expected (1, channels, rows, columns)")
        strides.append(2 ** round(math.log2(across)))
    data = timm.data.resolve_data_config({}, model=network)
    return Backbone(network, tuple(maps.shape[1] for maps in features), tuple(strides), data["mean"], data["std"])


def _probe(network: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """The feature maps of one black crop. Parameters that they do not depend on (the rest of a cut network) are frozen: several workers
    would wait for their gradients."""
    network.eval()
    output = network(torch.zeros(1, 3, size[1], size[0]))
    features = output if isinstance(output, list) else [output]
    sum(maps.sum() for maps in features).backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    network.train()
    return [maps.detach() for maps in features]


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
    data, config = _read_checkpoint(checkpoint_uri)
    model = build_model(config)
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ValueError(f"{checkpoint_uri} was written by another version of posepipe or of its libraries: {lines[:300]}") from error
    return model.eval(), storage.sha256(data)


def read_model_config(checkpoint_uri: str) -> tuple[ModelConfig, str]:
    """As `load_model`, without building the model."""
    data, config = _read_checkpoint(checkpoint_uri)
    return config, storage.sha256(data)


def _read_checkpoint(checkpoint_uri: str) -> tuple[bytes, ModelConfig]:
    uri = checkpoint_uri if checkpoint_uri.endswith(".safetensors") else storage.join_uri(checkpoint_uri, MODEL_FILE)
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no checkpoint at {uri}: expected the folder of a complete run of jobs.train or jobs.tune") from error
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        values = json.loads(header["__metadata__"]["config"])
        return data, ModelConfig(**{**values, "size": tuple(values["size"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is not a posepipe checkpoint: its header holds no model config") from error
