"""Arrays in the files of other systems: .npz, .mat (also v7.3) and .h5."""

from __future__ import annotations

import io
import zipfile
from typing import Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from posepipe import storage
from posepipe.skeleton import NUM_JOINTS

SUFFIXES = (".npz", ".mat", ".h5", ".hdf5")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def split_key(uri: str) -> tuple[str, str]:
    """`URI::key` -> the file and the key in it, which is empty where none is given."""
    base, found, key = uri.rpartition("::")
    return (base, key) if found and base.endswith(SUFFIXES) else (uri, "")


def is_array_file(uri: str) -> bool:
    return split_key(uri)[0].endswith(SUFFIXES)


def require_first_pixel(uri: str, first_pixel: int | None) -> int:
    """Whether coordinates start at 0 or 1 stands in no file: ValueError where nobody has said it."""
    if first_pixel is None:
        raise ValueError(
            f"{uri} is an array file: say with --first-pixel whether its coordinates start at 1 (MATLAB, MPII, most published sets) or 0"
        )
    return first_pixel


def read_arrays(uri: str) -> dict[str, NDArray[Any]]:
    """All arrays of a file by name, axes as its own program sees them; ValueError where it cannot be read."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ValueError(f"no file at {uri}") from error
    stream = io.BytesIO(data)
    try:
        if uri.endswith(".npz"):
            return dict(np.load(stream, allow_pickle=False))
        # A .mat file of version 7.3 is HDF5, after a block of its own, and holds the axes in reverse.
        if data.startswith(_HDF5_MAGIC) or data[512:520] == _HDF5_MAGIC:
            with h5py.File(stream, "r") as file:
                found = {name: np.asarray(item) for name, item in file.items() if isinstance(item, h5py.Dataset)}
            return {name: array.T for name, array in found.items()} if uri.endswith(".mat") else found
        return {name: value for name, value in loadmat(cast(Any, stream)).items() if not name.startswith("__")}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} cannot be read as {uri.rpartition('.')[2]}: {error}") from error


def read_poses(uri: str) -> dict[str, NDArray[np.float64]]:
    """The pose predictions in a file by name: the array that `URI::key` names, or all that are (N, 16, 2)."""
    base, key = split_key(uri)
    found = read_arrays(base)
    shapes = {name: np.shape(array) for name, array in found.items()}
    if key and key not in found:
        raise ValueError(f"{base} has no array {key!r}; it has {', '.join(sorted(found)) or 'none'}")
    fitting = [name for name, shape in shapes.items() if len(shape) == 3 and shape[1:] == (NUM_JOINTS, 2) and key in ("", name)]
    if not fitting:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if key in ("", name))
        raise ValueError(f"{uri} has no predictions: expected an array of shape (N, {NUM_JOINTS}, 2), got {listed or 'nothing'}")
    return {name: np.asarray(found[name], np.float64) for name in fitting}
