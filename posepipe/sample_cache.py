"""All samples of one split in a training worker; their pixels stay in shared memory.

The workers of a host share what lies in Ray's object store without a copy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from posepipe import samples


class SampleCache:
    """All samples of one split, in the order of their ids; the pixels stay where Ray put them, in shared memory."""

    def __init__(self, dataset: Any) -> None:
        tables: list[pa.Table] = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        labels = samples.label_arrays(pa.concat_tables([table.drop_columns(["pixels"]) for table in tables]))
        order = np.argsort(labels["sample_id"], kind="stable")
        self.labels = {name: values[order] for name, values in labels.items()}
        chunks = [chunk for table in tables for chunk in table["pixels"].chunks]
        rows = [row for chunk in chunks for row in _as_rows(chunk)]
        self._rows = [rows[index] for index in order]

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """(N, 3, S, S) uint8."""
        # A worker may have no part of a last, small batch.
        stacked = np.stack([self._rows[index] for index in indices]) if len(indices) else self._rows[0][None][:0]
        size = round((stacked.shape[1] / 3) ** 0.5)
        return torch.from_numpy(stacked).view(len(indices), size, size, 3).permute(0, 3, 1, 2)


def _as_rows(chunk: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """(N, bytes) view of a column without nulls."""
    width = chunk.type.byte_width
    data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    return data[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(len(chunk), width)
