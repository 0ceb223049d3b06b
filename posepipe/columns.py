"""Arrow columns -> arrays and back, NaN where null.

Lists of one length are of Arrow's type for lists of any length: most versions of Arrow can neither write nor read a Parquet column of
fixed-size lists of which one is null.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def list_array(column: pa.ChunkedArray, *shape: int) -> NDArray[np.float64]:
    """A column of lists of one length as (N, *shape); NaN where the list, or a value in it, is null. ValueError for another length."""
    if not pc.all(pc.equal(pc.list_value_length(column), math.prod(shape)), min_count=0).as_py():
        raise ValueError(f"expected lists of {math.prod(shape)} values, got some of another length")
    values = np.full((len(column), *shape), np.nan)
    start = 0
    for chunk in column.chunks:
        part = values[start : start + len(chunk)]
        # `flatten` leaves out the lists that are null.
        part[np.asarray(chunk.is_valid())] = np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), np.float64).reshape(-1, *shape)
        start += len(chunk)
    return values


def list_column(values: NDArray[Any], value_type: pa.DataType) -> pa.Array:
    """The inverse of `list_array`, for (N, K) values; a row without any number is null."""
    numbers = np.asarray(values, np.float64)
    is_null = np.isnan(numbers).all(axis=1)
    flat = pa.array(numbers[~is_null].ravel(), pa.float64(), from_pandas=True).cast(value_type)
    # A list that is null takes nothing of them.
    ends = numbers.shape[1] * np.cumsum(~is_null, dtype=np.int32)
    offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(is_null))


def float_array(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers as (N,)."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def text_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of strings as (N,) of str, None where null."""
    return np.array(column.to_pylist(), dtype=object)
