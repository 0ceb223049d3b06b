"""The file of a trained model, without the network in it: its config and its id.

What plans a scoring run needs no more than this, and no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from posepipe import storage

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that is needed to build a model again and to feed it.

    Attributes:
        task: key of TASKS.
        model: key of `backbones.MODELS` or a timm name.
        regression_head: key of HEADS.
        feature_stride: a timm backbone is cut at the last stage with at most this stride.
        size: (width, height) crop px.
        framing: of the samples it was trained on.
        mean_points: (num_points, 2) mean of the training labels in the unit frame: the floor that a model has to beat.
        samples_fingerprint: of the manifest of those samples.
        direct_loss: of the direct head.
        mean: that pixels in [0, 1] are scaled with; None, as in files of older versions, for what timm says of the network now.
        std: the same.
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
    mean: list[float] | None = None
    std: list[float] | None = None


def read_model_file(checkpoint_uri: str) -> tuple[bytes, ModelConfig]:
    """What lies at `checkpoint_uri` (a run folder, a checkpoint folder or the file itself), whole, and its config.

    Raises:
        ValueError: there is no checkpoint, or it was not written by `models.save_model`.
    """
    uri = checkpoint_uri if checkpoint_uri.endswith(".safetensors") else storage.join_uri(checkpoint_uri, MODEL_FILE)
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no checkpoint at {uri}: expected the folder of a complete run of jobs.train or jobs.tune") from error
    return data, parse_config(data, uri)


def parse_config(data: bytes, uri: str) -> ModelConfig:
    """The config in the header of a model's file; ValueError where it has none. `uri` is for messages."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        values = json.loads(header["__metadata__"]["config"])
        return ModelConfig(**{**values, "size": tuple(values["size"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is not a posepipe checkpoint: its header holds no model config") from error


def read_model_config(checkpoint_uri: str) -> tuple[ModelConfig, str]:
    """The config of the model at `checkpoint_uri`, and its sha256; errors as of `read_model_file`."""
    data, config = read_model_file(checkpoint_uri)
    return config, storage.sha256(data)


@dataclass(frozen=True)
class Checkpoint:
    """A model to predict with: where it lies, its sha256, and of its config what the plan needs."""

    uri: str
    model_id: str
    task: str
    framing: str
    size: tuple[int, int]


def read_checkpoint(uri: str) -> Checkpoint:
    """What lies at `uri`, as the plan of a scoring run knows it; errors as of `read_model_file`."""
    uri = storage.resolve_uri(uri)
    config, model_id = read_model_config(uri)
    return Checkpoint(uri, model_id, config.task, config.framing, config.size)


def join_ids(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Per task the model that predicts it: the id of its checkpoint, of an ensemble all ids joined by a comma."""
    return {
        task: ",".join(each.model_id for each in checkpoints if each.task == task) for task in dict.fromkeys(c.task for c in checkpoints)
    }
