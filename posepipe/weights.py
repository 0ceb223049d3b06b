"""Where a network starts: ImageNet weights, state dicts at URIs, whole or partial, or another run's model."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
import timm
import torch
from torch import Tensor

from posepipe import storage
from posepipe.backbones import MODELS
from posepipe.model_file import ModelConfig, parse_config
from posepipe.models import PoseModel

HEAD = "head."


@dataclass(frozen=True)
class LoadReport:
    """What a weights file did: names of the backbone's tensors and, with `head.` before them, of the regression head's."""

    loaded: list[str]
    missing: list[str]
    unused: list[str]


def load_weights(model: PoseModel, sources: Sequence[str]) -> LoadReport:
    """Starts the network from `imagenet` (timm's download) or from state dicts at URIs, one after the other.

    A tensor is taken where name and shape fit, after prefixes such as `module.` or `backbone.` are cut off; files may be partial. A model
    of this project also gives its regression head, where that is of the same kind and size.

    Raises:
        ValueError: no tensor of a file fits, the file is no state dict, or the backbone has no ImageNet weights.
    """
    own = model.backbone.state_dict()
    places = {_key(name): name for name in own}
    loaded: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unused: list[str] = []
    sources = [source for source in sources if source != "none"]
    for source in sources:
        state, config = (_imagenet_weights(model.config.model), None) if source == "imagenet" else _read_state_dict(source)
        of_head = {name.removeprefix(HEAD): tensor for name, tensor in state.items() if name.startswith(HEAD)}
        if of_head and any(name.startswith("backbone.") for name in state):
            state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
            if config and _is_same_head(config, model.config) and _shapes(of_head) == _shapes(model.head.state_dict()):
                head = of_head
            else:
                unused += [HEAD + name for name in of_head]
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
    if head:
        model.head.load_state_dict(head)
    # The counter of BatchNorm is no weight: files leave it out.
    missing = [name for name in own if name not in loaded and not name.endswith("num_batches_tracked")] if sources else []
    return LoadReport(sorted([*loaded, *(HEAD + name for name in head)]), missing, unused)


def _is_same_head(one: ModelConfig, other: ModelConfig) -> bool:
    """Tensors of equal names and shapes may mean px in one kind of head and shares of the crop in another."""
    return one.regression_head == other.regression_head and (one.regression_head != "paper" or one.size == other.size)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    if name in MODELS:
        raise ValueError(f"there are no ImageNet weights for {name}; give a URI, or none")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except RuntimeError as error:
        if "No pretrained weights exist" not in str(error):
            raise
        raise ValueError(f"timm has no ImageNet weights for {name}; give a URI, or none") from error
    except OSError as error:  # huggingface_hub's, where it has no file and no connection
        raise ValueError(
            f"cannot download the ImageNet weights of {name} from Hugging Face: {error}; give the URI of a state dict as --weights, or none"
        ) from error


def _read_state_dict(uri: str) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """With the config of a model of this project."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ValueError(f"no weights at {uri}; expected `imagenet` or the URI of a state dict (.pt, .pth, .safetensors)") from error
    try:
        if uri.endswith(".safetensors"):
            config = None
            with contextlib.suppress(ValueError):
                config = parse_config(data, uri)
            return safetensors.torch.load(data), config
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike.
        raise ValueError(f"{uri} is not a file of plain tensors (torch.load with weights_only=True): {error}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{uri} holds no state dict")
    return state, None


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
