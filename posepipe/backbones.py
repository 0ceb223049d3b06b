"""DeepPose CNN, residual backbones of timm: crops -> features."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Backbone:
    """A network from (N, 3, H, W) scaled pixels to (N, channels) where the stride is 0, or to maps (N, channels, H / stride, W / stride).

    Attributes:
        network: gives one tensor or a list, the coarsest map last.
        channels: of each of them.
        strides: of each of them.
        cells: columns and rows of the coarsest map, (0, 0) where there is none.
        mean: that pixels in [0, 1] are scaled with.
        std: the same.
    """

    network: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    cells: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class SamePad(nn.ZeroPad2d):
    """Pads for a "same" convolution where the stride does not divide evenly: the odd pixel goes right and below, as in TensorFlow."""

    def __init__(self, size: tuple[int, int], kernel: int, stride: int) -> None:
        across, down = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in size)
        super().__init__((across // 2, across - across // 2, down // 2, down - down // 2))


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch's own averages over channels by 3-D pooling, which on GPUs has no deterministic backward pass."""

    def forward(self, values: Tensor) -> Tensor:
        count = values.shape[1]
        squares = F.pad(values.square(), (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        mean = sum((squares[:, start : start + count] for start in range(1, self.size)), squares[:, :count]) / self.size
        return values / (self.k + self.alpha * mean).pow(self.beta)


def _build_deeppose(size: tuple[int, int], feature_stride: int) -> Backbone:
    """The paper's network up to its second fully connected layer (after Toshev, Szegedy: DeepPose, 2014)."""
    if feature_stride != 32:
        raise ValueError(f"deeppose cannot be cut: --feature-stride must stay 32, got {feature_stride}")
    num_cells = math.prod(-(-side // 4) // 2 // 2 // 2 for side in size)
    if not num_cells:
        raise ValueError(f"deeppose needs crops of at least 29 px, got {size[0]} x {size[1]}")
    network = nn.Sequential(
        SamePad(size, 11, 4),
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True), LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(inplace=True), LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256 * num_cells, 4096), nn.ReLU(inplace=True), nn.Dropout(0.6)),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.6)),
    )
    return Backbone(network, (4096,), (0,), (0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


MODELS: dict[str, Callable[[tuple[int, int], int], Backbone]] = {"deeppose": _build_deeppose}
"""name -> (crop px, feature stride) -> backbone. Every other name is timm's."""

MIN_STRIDE = 4  # of the finest map that a head is given


def build_backbone(name: str, size: tuple[int, int], feature_stride: int, all_maps: bool) -> Backbone:
    """A network with random weights.

    Args:
        name: key of MODELS or a timm name.
        size: width and height of the crops, px.
        feature_stride: a timm backbone is cut at the last stage with at most this stride.
        all_maps: give the maps of all stages that are left, from `MIN_STRIDE` on, not only the last.

    Raises:
        ValueError: an unknown name, with the choices, or a network that has no such features.
    """
    if name in MODELS:
        return MODELS[name](size, feature_stride)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=6) or ["resnetv2_50", "resnet18"]
        raise ValueError(f"unknown model {name!r}; choices: {', '.join(MODELS)} or a timm backbone such as {', '.join(near)}")
    try:
        info = timm.create_model(name, features_only=True).feature_info
        # Those that timm gives by default; DLA's begin with its second stage.
        stages, reductions = list(info.out_indices), info.reduction()
        fitting = [place for place, reduction in enumerate(reductions) if reduction <= feature_stride]
        if not fitting:
            raise ValueError(f"{name} has stages of stride {reductions}, none is at most --feature-stride {feature_stride}")
        if all_maps:
            network = timm.create_model(
                name, features_only=True, out_indices=[stages[place] for place in fitting if reductions[place] >= MIN_STRIDE]
            )
        elif fitting[-1] == len(reductions) - 1:
            # The whole network, with its final normalisation where it has one (ResNetV2).
            network = timm.create_model(name, num_classes=0, global_pool="")
        else:
            network = timm.create_model(name, features_only=True, out_indices=(stages[fitting[-1]],))
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
    if len(set(strides)) < len(strides):
        raise ValueError(f"{name} gives maps of strides {strides}, of which none is finer than another; choices: another regression head")
    data = timm.data.resolve_data_config({}, model=network)
    rows, columns = features[-1].shape[2:]
    return Backbone(network, tuple(maps.shape[1] for maps in features), tuple(strides), (columns, rows), data["mean"], data["std"])


def _is_frozen(module: nn.Module) -> bool:
    """Whether it has parameters, of which none is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _probe(network: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """The feature maps of one black crop. What they do not depend on (the rest of a cut network) is taken away where it is a block of its
    own, as in EfficientNet's family, which computes it all the same; other parameters are frozen: several workers would wait for their
    gradients."""
    network.eval()
    output = network(torch.zeros(1, 3, size[1], size[0]))
    features = output if isinstance(output, list) else [output]
    sum(maps.sum() for maps in features).backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    blocks = getattr(network, "blocks", None)
    while isinstance(blocks, nn.Sequential) and len(blocks) and _is_frozen(blocks[-1]):
        del blocks[-1]
    network.train()
    return [maps.detach() for maps in features]
