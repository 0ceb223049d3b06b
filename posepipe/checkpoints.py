"""The state of a training run between two steps, saved and restored.

Uploads run beside the training, one at a time. Ray keeps the best checkpoint and the last one; one that is made in the middle of an epoch
has no validation score yet and ranks below all that have.
"""

import os
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from posepipe import storage
from posepipe.model_file import MODEL_FILE
from posepipe.models import PoseModel, load_model, save_model
from posepipe.optimizers import WeightAverage
from posepipe.runs import HISTORY_FILE
from posepipe.snapshots import SNAPSHOTS_FILE

STATE_FILE = "state.pt"
NOT_SCORED = -1.0  # below every objective, which are shares


@dataclass
class Progress:
    """Where a run is between two steps, apart from its weights. All else follows from the seed and the numbers of epoch and step.

    Attributes:
        history: one row per finished epoch.
        snapshots: a SNAPSHOT table.
        losses: of the steps that were done in the epoch that goes on; NaN where one was left out.
        loss_sum: over the points of those steps.
        num_points: that had a label.
        seconds: since the last row of the history: waiting for data, computing, and waiting for checkpoints.
    """

    history: list[dict[str, Any]]
    snapshots: pa.Table
    losses: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    num_points: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "compute": 0.0, "checkpoint": 0.0})

    @property
    def epoch(self) -> int:
        """0-based number of the epoch that goes on."""
        return len(self.history)

    @property
    def step(self) -> int:
        """How many steps of it are done, those left out among them."""
        return len(self.losses)

    def end_epoch(self, row: dict[str, Any], snapshots: pa.Table) -> "Progress":
        """Before the first step of the next epoch."""
        return Progress([*self.history, row], snapshots)


class Checkpoints:
    """Saves and restores one run; every worker calls the same methods in the same order, one of them writes."""

    def __init__(
        self,
        model: PoseModel,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        average: WeightAverage | None,
        is_writer: bool,
    ) -> None:
        self._model, self._optimizer, self._schedule, self._average = model, optimizer, schedule, average
        self._is_writer = is_writer
        self._uploaded = self._latest_path()
        self._is_uploading = False

    @staticmethod
    def _latest_path() -> str | None:
        latest = ray.train.get_checkpoint()
        return None if latest is None else latest.path

    def restore(self) -> Progress | None:
        """Loads the latest checkpoint into the model, its average, the optimizer and the schedule; None where there is none."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            weights = load_model(folder)[0].state_dict()
            state = torch.load(os.path.join(folder, STATE_FILE), map_location="cpu", weights_only=True)
            history = storage.read_json(os.path.join(folder, HISTORY_FILE))
            snapshots = storage.read_table(os.path.join(folder, SNAPSHOTS_FILE))
        if self._average is not None:
            # What the folder gives out is the average; the training goes on with the weights themselves.
            self._average.model.load_state_dict(weights)
            self._average.num_steps, weights = state["average_steps"], state["weights"]
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        return Progress(history, snapshots, **state["progress"])

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint and starts its upload; waits where the one before is still on its way."""
        start = time.monotonic()
        metrics = {"epoch": progress.epoch, "objective": NOT_SCORED} if progress.step else progress.history[-1]
        saved = None
        if self._is_writer:
            # One local copy at a time: a store that is slower than the training must not fill the disk.
            while self._is_uploading and self._latest_path() == self._uploaded:
                time.sleep(0.02)
            self._uploaded, self._is_uploading = self._latest_path(), True
            # Ray deletes the folder once it is uploaded.
            folder = tempfile.mkdtemp(prefix="posepipe-checkpoint-")
            save_model(self._average.model if self._average else self._model, os.path.join(folder, MODEL_FILE))
            kept = {name: getattr(progress, name) for name in ("losses", "loss_sum", "num_points", "seconds")}
            state: dict[str, Any] = {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict(), "progress": kept}
            if self._average is not None:
                state |= {"weights": self._model.state_dict(), "average_steps": self._average.num_steps}
            torch.save(state, os.path.join(folder, STATE_FILE))
            storage.write_json(os.path.join(folder, HISTORY_FILE), progress.history)
            storage.write_table(os.path.join(folder, SNAPSHOTS_FILE), progress.snapshots)
            saved = Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=saved, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        progress.seconds["checkpoint"] += time.monotonic() - start
