"""The models of a scoring run on one device: crops -> points in image px.

Apart from `predicting`, so that the driver, which starts the actors, imports no torch.
"""

import copy
import functools
import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from posepipe import averaging, geometry
from posepipe.config import Precision
from posepipe.model_file import Checkpoint
from posepipe.models import PoseModel, load_model
from posepipe.tasks import TASKS, Task


class Ensemble:
    """Models on one device, and the pixels that each of them takes out of a ShardReader's.

    Attributes:
        models: in the order of the checkpoints.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        num_threads: int,
        use_gpu: bool,
        flip_test: bool,
        test_scales: Sequence[float],
        precision: Precision,
    ) -> None:
        """
        Args:
            checkpoints: of the models.
            sizes: widths and heights of the crops that `predict` is given.
            batch_size: crops per forward pass.
            num_threads: of torch beside a GPU; without one, threads that may predict at a time, each on one core.
            use_gpu: the models are on the GPU, and threads that predict take turns.
            flip_test: see `averaging.predict`.
            test_scales: likewise.
            precision: of the networks.
        """
        # The same shard gives the same bytes, whoever computes it.
        torch.backends.cudnn.deterministic = True
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._sizes, self._batch_size, self._flip_test, self._test_scales = sizes, batch_size, flip_test, test_scales
        self._own_sizes = [checkpoint.size for checkpoint in checkpoints]
        self._torch_threads, self._is_set = (num_threads if use_gpu else 1), threading.local()
        self.models = [_load(checkpoint).to(self._device) for checkpoint in checkpoints]
        # Networks that collect their features by hooks, and torch's first use of linear algebra on a GPU, are for one thread at a time, and
        # two batches of --batch-size may be more than a GPU's memory holds: who predicts takes a set of models and puts it back.
        self._free: queue.SimpleQueue[list[PoseModel]] = queue.SimpleQueue()
        for models in (self.models, *(copy.deepcopy(self.models) for _ in range(0 if use_gpu else num_threads - 1))):
            if precision == "bfloat16":
                for model in models:
                    # The network alone: what is decoded from its output stays float32.
                    model.forward = functools.partial(_in_bfloat16, model.forward)  # type: ignore[method-assign]
            self._free.put(models)

    def predict(
        self, pixels: bytes, crop_to_image: NDArray[np.float64]
    ) -> list[tuple[Task, NDArray[np.float64], NDArray[np.float64] | None]]:
        """Per task: itself, points (N, K, 2) in image px and confidences (N, K) or None; averaged where several models predict it.

        Args:
            pixels: uint8 crops of N pictures, size after size.
            crop_to_image: (sizes, N, 2, 3).
        """
        count = crop_to_image.shape[1]
        by_size, start = {}, 0
        for size in self._sizes:
            width, height = size
            crops = np.frombuffer(pixels, np.uint8, count * 3 * width * height, start).reshape(count, height, width, 3)
            by_size[size] = crops
            start += crops.size
        if not hasattr(self._is_set, "done"):  # OpenMP has a number for each thread that calls.
            torch.set_num_threads(self._torch_threads)
            self._is_set.done = True
        estimates: dict[str, list[averaging.Estimate]] = {}
        models = self._free.get()
        try:
            for model, size in zip(models, self._own_sizes, strict=True):
                points, confidence = self._run(model, by_size[size])
                points_image = geometry.transform(crop_to_image[list(self._sizes).index(size)], points.numpy())
                estimates.setdefault(model.config.task, []).append((torch.from_numpy(points_image), confidence))
        finally:
            self._free.put(models)
        found = []
        for name, of_task in estimates.items():
            points, confidence = averaging.average(of_task, is_box=TASKS[name].is_box)
            found.append((TASKS[name], points.numpy(), None if confidence is None else confidence.numpy()))
        return found

    @torch.inference_mode()
    def _run(self, model: PoseModel, crops: NDArray[np.uint8]) -> averaging.Estimate:
        nothing = torch.empty((0, TASKS[model.config.task].num_points, 2), dtype=torch.float64, device=self._device)
        points, confidences = [nothing], []
        for start in range(0, len(crops), self._batch_size):
            batch = self._upload(crops[start : start + self._batch_size])
            decoded, confidence = averaging.predict(model, batch, flip_test=self._flip_test, scales=self._test_scales)
            points.append(decoded.double())
            if confidence is not None:
                confidences.append(confidence.double())
        return torch.cat(points).cpu(), torch.cat(confidences).cpu() if confidences else None

    def _upload(self, crops: NDArray[np.uint8]) -> Tensor:
        """(N, height, width, 3) -> (N, 3, height, width) on the device, which may go on with the batch before meanwhile."""
        batch = torch.empty(crops.shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        batch.numpy()[...] = crops
        return batch.permute(0, 3, 1, 2).to(self._device, non_blocking=True)


def _in_bfloat16(forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    # One of these for each call: it keeps what it has to go back to, and two threads would share that.
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return forward(pixels)


def _load(checkpoint: Checkpoint) -> PoseModel:
    model, found = load_model(checkpoint.uri)
    if found != checkpoint.model_id:
        raise RuntimeError(f"{checkpoint.uri} changed while it was scored with: model {checkpoint.model_id} became {found}")
    if any(type(module) is nn.BatchNorm2d for module in model.backbone.modules()):
        model.backbone = _fold_batch_norm(model.backbone, checkpoint.size)
    return model


@torch.no_grad()  # What inference mode makes, a GPU will not convolve with.
def _fold_batch_norm(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The network in eval mode with each BatchNorm as part of the convolution before it: a sixth less to do for a small ResNet.

    A network that cannot be traced, or that gives something else when it is (one that collects its features by hooks), stays as it is.
    """
    pixels = torch.randn(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))
    try:
        folded = fuse(network)
        outputs = network(pixels), folded(pixels)
    except Exception:  # Tracing runs the network's own code on symbols, which may end with whatever that code raises.
        return network
    wanted, found = ([maps] if isinstance(maps, Tensor) else maps for maps in outputs)
    is_same = len(wanted) == len(found) and all(map(_is_close, wanted, found))
    return folded if is_same else network


def _is_close(wanted: Tensor, found: Tensor) -> bool:
    return wanted.shape == found.shape and bool((wanted - found).abs().max() <= 1e-4 * wanted.abs().max())
