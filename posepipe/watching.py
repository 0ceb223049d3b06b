"""Where a training run can be watched: TensorBoard's event files beside it, MLflow, Weights & Biases.

There is one event file per epoch, written whole when the epoch ends, to any storage. An epoch that is trained again after a crash replaces
its file, so no step is there twice. The other two find a run of theirs again by the id of the run folder; while their server is away, the
training goes on and the epochs wait.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posepipe import storage
from posepipe.failures import one_line

EVENTS_FOLDER = "tensorboard"


def require_logger(name: str) -> None:
    """ValueError where the package of a logger is missing; `none` needs none."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"--logger {name} needs a package that is not installed: pip install 'posepipe[{name}]', or pip install {name}")


class Watcher:
    """Shows the epochs of one run; for one of its workers.

    Args:
        run_uri: the run's folder.
        run_id: of the folder, which another run in the same place does not have.
        name: of the run, for people.
        settings: of the run.
        logger: none, mlflow or wandb.
        is_new: the run begins; a server that does not answer then is a mistake, later a fault that passes.
    """

    def __init__(self, run_uri: str, run_id: str, name: str, settings: Mapping[str, Any], logger: str, is_new: bool = True) -> None:
        self._events_uri = storage.join_uri(run_uri, EVENTS_FOLDER)
        self._open = lambda: LOGGERS[logger](run_uri, run_id, name, settings)
        self._session: Session | None = self._open() if is_new else None
        self._waiting: list[Row] = []
        self._logger = logger
        self._try(self._send)

    def show_epoch(self, row: Mapping[str, Any], losses: Sequence[float]) -> None:
        """Shows a row of the history and the losses of the epoch's steps, NaN where one was left out."""
        epoch, values = row["epoch"], {name: value for name, value in row.items() if isinstance(value, int | float)}
        data = to_events(epoch, values, {(epoch - 1) * len(losses) + step: loss for step, loss in enumerate(losses, 1)})
        # Readers go through the files in the order of their names.
        storage.write_bytes(storage.join_uri(self._events_uri, f"events.out.tfevents.{epoch:06d}.posepipe"), data)
        self._waiting.append(values)
        self._try(self._send)

    def close(self, is_complete: bool) -> None:
        self._try(self._send)
        if self._session is not None:
            end = self._session[1]
            self._try(lambda: end(is_complete))

    def _send(self) -> None:
        self._session = self._session or self._open()
        while self._waiting:
            self._session[0](self._waiting[0])
            del self._waiting[0]

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # Whatever the package raises: who watches does not stop what is watched.
            reason = one_line(f"{type(error).__name__}: {error}")
            sys.stdout.write(f"{self._logger} does not answer, {len(self._waiting)} epochs wait for it: {reason}\n")
            sys.stdout.flush()


def to_events(epoch: int, values: Mapping[str, float], losses: Mapping[int, float]) -> bytes:
    """A TensorBoard event file: `epoch/…` over epochs, `step/loss` over optimizer steps."""
    from tensorboardX import SummaryWriter  # It loads torch.

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for step, loss in losses.items():
                if math.isfinite(loss):
                    writer.add_scalar("step/loss", loss, step)
            for name, value in values.items():
                writer.add_scalar(f"epoch/{name}", value, epoch)
        (name,) = os.listdir(folder)
        return storage.read_bytes(os.path.join(folder, name))


def read_events(run_uri: str) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), of all event files beside a run, in the order in which TensorBoard reads them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in _iter_events(run_uri):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def read_epoch_ends(run_uri: str) -> list[float]:
    """When each epoch's validation was over, in seconds since 1970; of an epoch that was trained again, the last time."""
    ends = {event.step: event.wall_time for event in _iter_events(run_uri) for value in event.summary.value if value.tag == "epoch/epoch"}
    return [ends[epoch] for epoch in sorted(ends)]


def _iter_events(run_uri: str) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event

    for uri in storage.list_files(storage.join_uri(run_uri, EVENTS_FOLDER)):
        data = storage.read_bytes(uri)
        while data:  # TFRecord: length (8 bytes), its checksum (4), event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


Row = Mapping[str, float]
Session = tuple[Callable[[Row], None], Callable[[bool], None]]
"""What logs a row, what ends the log."""


def _open_none(run_uri: str, run_id: str, name: str, settings: Mapping[str, Any]) -> Session:
    return lambda row: None, lambda is_complete: None


def _open_mlflow(run_uri: str, run_id: str, name: str, settings: Mapping[str, Any]) -> Session:
    mlflow: Any = importlib.import_module("mlflow")
    # In the experiment that MLFLOW_EXPERIMENT_NAME names.
    found = mlflow.search_runs(filter_string=f"tags.posepipe_run = '{run_id}'", output_format="list")
    last, known = 0, {}
    if found:
        mlflow.start_run(run_id=found[0].info.run_id)
    else:
        mlflow.start_run(run_name=name, tags={"posepipe_run": run_id, "run_uri": run_uri})
    try:
        if found:
            theirs, known = found[0].info.run_id, found[0].data.params
            last = max((each.step for each in mlflow.MlflowClient().get_metric_history(theirs, "train_loss")), default=0)
        # Whoever began the run may not have got as far as its settings.
        if missing := {field: value for field, value in settings.items() if field not in known}:
            mlflow.log_params(missing)
    except Exception:
        # MLflow begins no run beside one that is active in this process, so the next try needs this one to end.
        with contextlib.suppress(Exception):
            mlflow.end_run("FAILED")
        raise

    def log(row: Row) -> None:
        if row["epoch"] > last:
            mlflow.log_metrics(dict(row), step=int(row["epoch"]))

    return log, lambda is_complete: mlflow.end_run("FINISHED" if is_complete else "FAILED")


def _open_wandb(run_uri: str, run_id: str, name: str, settings: Mapping[str, Any]) -> Session:
    wandb: Any = importlib.import_module("wandb")
    # WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE say where to.
    run = wandb.init(name=name, id=run_id[:16], resume="allow", config=dict(settings))
    first = run.step

    def log(row: Row) -> None:
        if row["epoch"] >= first:
            run.log(dict(row), step=int(row["epoch"]), commit=True)  # else it is sent with the next epoch

    return log, lambda is_complete: run.finish(exit_code=0 if is_complete else 1)


LOGGERS: dict[str, Callable[[str, str, str, Mapping[str, Any]], Session]] = {
    "none": _open_none,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}
"""name -> (URI of the run folder, its id, name of the run, its settings) -> a session."""
