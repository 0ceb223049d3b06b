"""DeepPose CNN, residual backbones; save and load with their own config."""

import difflib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from posepipe import storage
from posepipe.heads import HEADS
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
        size: crop px.
        framing: of the samples it was trained on.
        mean_points: (num_points, 2) mean of the training labels in the unit frame: the floor that a model has to beat.
        samples_fingerprint: of the manifest of those samples.
    """

    task: str
    model: str
    regression_head: str
    feature_stride: int
    size: int
    framing: str
    mean_points: list[list[float]]
    samples_fingerprint: str


@dataclass(frozen=True)
class Backbone:
    """A network from (N, 3, S, S) scaled pixels to (N, num_features) or, where stride > 0, to (N, num_features, S/stride, S/stride)."""

    network: nn.Module
    num_features: int
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PoseModel(nn.Module):
    """Pixels (N, 3, S, S) in [0, 255], uint8 or float -> the regression head's raw output. Pixel scaling is part of the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        task, build_head = TASKS[config.task], HEADS[config.regression_head]
        backbone = _build_backbone(config.model, config.size, config.feature_stride)
        if config.regression_head == "heatmap" and not backbone.stride:
            raise ValueError(f"{config.model} has no feature map for the heatmap head; choices: direct, paper")
        self.backbone = backbone.network
        self.head = build_head(backbone.num_features, task.num_points, config.size, backbone.stride)
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        features = self.backbone((pixels.to(mean.dtype) - mean) / std)
        return self.head(features[-1] if isinstance(features, list) else features)

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points (N, num_points, 2) in crop px and, where the head knows it, a confidence (N, num_points) in [0, 1]."""
        head: Any = self.head
        return head.decode(self(pixels))


class SamePad(nn.ZeroPad2d):
    """Pads for a "same" convolution where the stride does not divide evenly: the odd pixel goes right and below, as in TensorFlow."""

    def __init__(self, size: int, kernel: int, stride: int) -> None:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        super().__init__((total // 2, total - total // 2, total // 2, total - total // 2))


def _build_deeppose(size: int, feature_stride: int) -> Backbone:
    """The paper's network up to its second fully connected layer (after Toshev, Szegedy: DeepPose, 2014)."""
    if feature_stride != 32:
        raise ValueError(f"deeppose cannot be cut: --feature-stride must stay 32, got {feature_stride}")
    maps = -(-size // 4) // 2 // 2 // 2
    if not maps:
        raise ValueError(f"deeppose needs crops of at least 29 px, got {size}")
    network = nn.Sequential(
        SamePad(size, 11, 4),
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(inplace=True), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256 * maps * maps, 4096), nn.ReLU(inplace=True), nn.Dropout(0.6)),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.6)),
    )
    return Backbone(network, 4096, 0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


MODELS: dict[str, Callable[[int, int], Backbone]] = {"deeppose": _build_deeppose}
"""name -> (crop px, feature stride) -> backbone. Every other name is timm's."""


def _build_backbone(name: str, size: int, feature_stride: int) -> Backbone:
    if name in MODELS:
        return MODELS[name](size, feature_stride)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=6) or ["resnetv2_50", "resnet18"]
        raise ValueError(f"unknown model {name!r}; choices: {', '.join(MODELS)} or a timm backbone such as {', '.join(near)}")
    try:
        stages = timm.create_model(name, features_only=True).feature_info
        fitting = [index for index, reduction in enumerate(stages.reduction()) if reduction <= feature_stride]
        if not fitting:
            raise ValueError(f"{name} has stages of stride {stages.reduction()}, none is at most --feature-stride {feature_stride}")
        if fitting[-1] == len(stages.reduction()) - 1:
            # The whole network, with its final normalisation where it has one (ResNetV2).
            network = timm.create_model(name, num_classes=0, global_pool="")
        else:
            network = timm.create_model(name, features_only=True, out_indices=(fitting[-1],))
        features = _probe(network, size)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} gives no feature map for crops of {size} px ({error}); choices: deeppose or another backbone") from error
    if features.ndim != 4 or features.shape[2] != features.shape[3]:
        raise ValueError(f"{name} gives features of shape {tuple(features.shape)}, expected (1, channels, rows, columns)")
    data = timm.data.resolve_data_config({}, model=network)
    return Backbone(network, features.shape[1], 2 ** round(math.log2(size / features.shape[-1])), data["mean"], data["std"])


def _probe(network: nn.Module, size: int) -> Tensor:
    """The feature map of one black crop. Parameters that it does not depend on (the rest of a cut network) are frozen: several workers
    would wait for their gradients."""
    network.eval()
    output = network(torch.zeros(1, 3, size, size))
    features = output[-1] if isinstance(output, list) else output
    features.sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    network.train()
    return features.detach()


def build_model(config: ModelConfig) -> PoseModel:
    """A model with random weights; ValueError for an unknown name, with the choices."""
    # Pixels come as rows of RGB triples; convolutions on CPUs and tensor cores are fastest on just that layout.
    with torch.inference_mode(False), torch.enable_grad():
        return PoseModel(config).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LoadReport:
    """What a weights file did: names of the backbone's tensors."""

    loaded: list[str]
    missing: list[str]
    unused: list[str]


def load_weights(model: PoseModel, sources: Sequence[str]) -> LoadReport:
    """Starts the backbone from `imagenet` (timm's download) or from state dicts at URIs, one after the other.

    A tensor is taken where name and shape fit, after prefixes such as `module.` or `backbone.` are cut off; files may be partial.

    Raises:
        ValueError: no tensor of a file fits, the file is no state dict, or the backbone has no ImageNet weights.
    """
    own = model.backbone.state_dict()
    places = {_key(name): name for name in own}
    loaded: dict[str, Tensor] = {}
    unused: list[str] = []
    sources = [source for source in sources if source != "none"]
    for source in sources:
        state = _imagenet_weights(model.config.model) if source == "imagenet" else _read_state_dict(source)
        state = _strip_prefix(state, set(places))
        fitting = {places[_key(name)]: tensor for name, tensor in state.items() if _key(name) in places}
        fitting = {name: tensor for name, tensor in fitting.items() if tensor.shape == own[name].shape}
        if not fitting:
            raise ValueError(
                f"no tensor of {source} fits {model.config.model}: "
                f"it has {', '.join(list(state)[:4])}, …; expected {', '.join(list(own)[:4])}, …"
            )
        loaded |= fitting
        unused += [name for name in state if places.get(_key(name)) not in fitting]
    model.backbone.load_state_dict(loaded, strict=False)
    # The counter of BatchNorm is no weight: files leave it out.
    missing = [name for name in own if name not in loaded and not name.endswith("num_batches_tracked")] if sources else []
    return LoadReport(sorted(loaded), missing, unused)


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    if name in MODELS:
        raise ValueError(f"there are no ImageNet weights for {name}; give a URI, or none")
    return timm.create_model(name, pretrained=True).state_dict()


def _read_state_dict(uri: str) -> dict[str, Tensor]:
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ValueError(f"no weights at {uri}; expected `imagenet` or the URI of a state dict (.pt, .pth, .safetensors)") from error
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike.
        raise ValueError(f"{uri} is not a file of plain tensors (torch.load with weights_only=True): {error}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{uri} holds no state dict")
    return state


def _key(name: str) -> str:
    """A tensor's name however the network was cut: timm calls `stages.0` of a whole network `stages_0` in a part of it."""
    return name.replace("_", ".")


def _strip_prefix(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Cuts off leading names, one by one, while that makes more tensors fit; own are keys."""
    best = state
    for _ in range(3):
        state = {name.partition(".")[2] or name: tensor for name, tensor in state.items()}
        if len(own & set(map(_key, state))) > len(own & set(map(_key, best))):
            best = state
    return best


def save_model(model: PoseModel, path: str) -> None:
    """One safetensors file with the config in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata={"config": json.dumps(asdict(model.config), sort_keys=True)})


def load_model(checkpoint_uri: str) -> tuple[PoseModel, str]:
    """The model at `checkpoint_uri` (a run folder, a checkpoint folder or the file itself) in eval mode, and its sha256.

    Raises:
        ValueError: there is no checkpoint, or it was not written by `save_model`.
    """
    data, config = _read_checkpoint(checkpoint_uri)
    model = build_model(config)
    model.load_state_dict(safetensors.torch.load(data))
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
        return data, ModelConfig(**json.loads(header["__metadata__"]["config"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is not a posepipe checkpoint: its header holds no model config") from error
