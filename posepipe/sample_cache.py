"""All samples of one split in a training worker, decoded already or as JPEGs; they stay in shared memory.

The workers of a host share what lies in Ray's object store without a copy.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from posepipe import images, samples


class SampleCache:
    """All samples of one split, in the order of their ids; they stay where Ray put them, in shared memory.

    Attributes:
        labels: of `samples.label_arrays`, in px of the crop without its margin.
        margin: px (x, y) that lie around the crop on each side.
    """

    def __init__(
        self, dataset: Any, size: tuple[int, int], margin: tuple[int, int] = (0, 0), num_threads: int = 1, *, is_pinned: bool = False
    ) -> None:
        """
        Args:
            dataset: of `training_data.load_crops`.
            size: width and height of the crops, px.
            margin: of the dataset's pictures.
            num_threads: that decode what is not decoded yet, of every batch.
            is_pinned: batches lie in pinned memory, from which a GPU copies while it computes.

        Raises:
            ValueError: the pictures are not of this size and margin.
        """
        self.margin = margin
        self._is_pinned = is_pinned
        (width, height), (x, y) = size, margin
        self._shape = (height + 2 * y, width + 2 * x, 3)
        self._inner = slice(y, y + height), slice(x, x + width)
        tables: list[pa.Table] = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        labels = samples.label_arrays(pa.concat_tables([table.select(samples.LABELS) for table in tables]))
        order = np.argsort(labels["sample_id"], kind="stable")
        self.labels = {name: values[order] for name, values in labels.items()}
        self._pool: ThreadPoolExecutor | None = None
        if "crop" in tables[0].column_names:
            self._pool = ThreadPoolExecutor(num_threads)
            rows: list[Any] = [row for table in tables for row in table["crop"]]
        else:
            rows = [row for table in tables for chunk in table["pixels"].chunks for row in _as_pictures(chunk, self._shape)]
        self._rows = [rows[index] for index in order]

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """The crops that the labels speak of, (N, 3, height, width) uint8: what validation and scoring see."""
        return self._stack(indices, self._inner)

    def with_margin(self, indices: Sequence[int]) -> Tensor:
        """All that is stored, (N, 3, height + 2 y, width + 2 x) uint8: what augmentation warps from."""
        return self._stack(indices, (slice(None), slice(None)))

    def _stack(self, indices: Sequence[int], part: tuple[slice, slice]) -> Tensor:
        rows = [self._rows[index] for index in indices]
        pictures = list(self._pool.map(self._decode, rows)) if self._pool else rows
        shape = np.broadcast_to(0, self._shape)[part].shape
        stacked = torch.empty((len(rows), *shape), dtype=torch.uint8, pin_memory=self._is_pinned)
        if pictures:  # A worker may have no part of a last, small batch.
            np.stack([each[part] for each in pictures], out=stacked.numpy())
        return stacked.permute(0, 3, 1, 2)

    def _decode(self, data: pa.BinaryScalar) -> NDArray[np.uint8]:
        picture = images.decode_jpeg(data.as_py())
        if picture.shape != self._shape:
            raise ValueError(f"expected pictures of {self._shape[1]} x {self._shape[0]} px, got {picture.shape[1]} x {picture.shape[0]}")
        return picture


def _as_pictures(chunk: pa.FixedSizeBinaryArray, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(N, *shape) view of a column without nulls."""
    width = chunk.type.byte_width
    if width != shape[0] * shape[1] * shape[2]:
        raise ValueError(f"expected pixels of {shape[1]} x {shape[0]} px, got {width} bytes")
    data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    return data[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(len(chunk), *shape)
