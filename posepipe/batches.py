"""Global batches of the train samples, of which the next one is fetched while one is trained on; how numbers reach a GPU."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Fetched:
    """A worker's part of a global batch, as its networks see it.

    Attributes:
        pixels: (N, 3, height, width) in [0, 255], on the worker's device.
        target: (N, num_points, 2) px of the crop, on the worker's device.
        arrival: of both, where they are still on their way to a GPU.
    """

    pixels: Tensor
    target: Tensor
    arrival: torch.cuda.Event | None

    def receive(self) -> tuple[Tensor, Tensor]:
        """Pixels and target, for which what is launched from here on waits."""
        if self.arrival is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            stream.wait_event(self.arrival)
            for tensor in (self.pixels, self.target):
                tensor.record_stream(stream)
        return self.pixels, self.target


def send(values: Tensor, device: torch.device) -> Tensor:
    """What was drawn, on its way from the CPU to the device; only from pinned memory nobody waits until a GPU has done all before."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def split_batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Global batches, the same for any number of workers; a last one of a single sample is left out, for BatchNorm's sake."""
    return tuple(batch for batch in order.split(batch_size) if len(batch) > 1)


@contextlib.contextmanager
def read_ahead(fetch: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Iterator[Result]]:
    """What `fetch` gives for each item, in their order; a thread, which takes one core, fetches the next one while one is used."""
    with ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield _one_ahead(fetch, items, pool)


def _one_ahead(fetch: Callable[[Item], Result], items: Iterable[Item], pool: ThreadPoolExecutor) -> Iterator[Result]:
    following = None
    for item in items:
        current, following = following, pool.submit(fetch, item)
        if current is not None:
            yield current.result()
    if following is not None:
        yield following.result()
