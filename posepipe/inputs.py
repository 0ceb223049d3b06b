"""What a scoring run is of: a listing or a manifest -> the stored, sorted list of inputs, cut into shards.

The list is made once and kept with the run, so a run that goes on later is of the same pictures, whatever came into the bucket since.
"""

import hashlib
import io
import itertools
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from posepipe import storage
from posepipe.geometry import PERSON_HEIGHT, PERSON_SHIFT

INPUTS_FOLDER = "inputs"
RUN_FOLDERS = (INPUTS_FOLDER, "parts", "done", "writers")
"""Of a run: see `posepipe.journal`."""
MANIFEST_FORMATS = (".parquet", ".csv", ".txt")
SHARDS_PER_FILE = 64
_CHUNK = 10_000
_LARGE_CHUNK = 1_000_000
# Arrow cannot sort or join strings of 2 GiB in all with 32-bit offsets: some 25 million URIs.
_URI = pa.large_string()

INPUT = pa.schema(
    [
        pa.field("sample_id", pa.string(), metadata={"doc": "the URI, and #k where it has several rows"}),
        pa.field("uri", pa.string(), metadata={"doc": "of the picture"}),
        pa.field("size", pa.int64(), metadata={"doc": "bytes, null where not listed"}),
        pa.field("center_x", pa.float64(), metadata={"doc": "of the person, image px as stored (MPII's objpos), or null"}),
        pa.field("center_y", pa.float64(), metadata={"doc": "of the person, image px as stored (MPII's objpos), or null"}),
        pa.field("scale", pa.float64(), metadata={"doc": "of the person, height / 200 px, or null"}),
        pa.field("person_from", pa.string(), metadata={"doc": "center or box, or null where no person is given"}),
    ]
)
_BOX = ("x1", "y1", "x2", "y2")
_CENTER = ("center_x", "center_y", "scale")


def is_manifest(images_uri: str) -> bool:
    return images_uri.lower().endswith(MANIFEST_FORMATS)


def read_inputs(images_uri: str, *, limit: int = 0, sample_fraction: float = 1.0, without: str = "") -> pa.Table:
    """The INPUT rows of a prefix or a manifest, sorted by URI.

    Args:
        images_uri: a folder or bucket prefix, of which all files are inputs; or a .parquet, .csv or .txt file, see `_read_manifest`.
        limit: only the first so many; 0 is all.
        sample_fraction: only this share, the same one every time.
        without: a folder to leave out, where the results go.

    Raises:
        ValueError: there are no inputs, or the manifest is not one.
    """
    most = limit if sample_fraction == 1 else 0
    table = _read_manifest(images_uri) if is_manifest(images_uri) else _list_prefix(images_uri, without, most)
    if not table.num_rows:
        raise ValueError(f"no inputs: {'no rows in' if is_manifest(images_uri) else 'no files below'} {images_uri}")
    # Named before some are chosen, so that a choice does not change names.
    table = table.append_column("sample_id", _sample_ids(table["uri"]))
    if sample_fraction < 1:
        table = table.filter(pa.array(_sampled(table["uri"], sample_fraction)))
        if not table.num_rows:
            raise ValueError(f"--sample-fraction {sample_fraction} leaves none of the inputs of {images_uri}")
    if limit:
        table = table.slice(0, limit)
    table = table.select(INPUT.names)
    starts = range(0, table.num_rows, _LARGE_CHUNK)
    # `take` copies: what is cut out of a longer column keeps its 64-bit offsets, which do not fit.
    return pa.concat_tables(table.take(np.arange(start, min(start + _LARGE_CHUNK, table.num_rows))).cast(INPUT) for start in starts)


def require_apart(images_uri: str, run_uri: str) -> None:
    """ValueError where the pictures of a prefix lie among the files that a run writes, which would be inputs too."""
    if storage.spell_below(run_uri, images_uri) == storage.spell_below(images_uri, images_uri):
        raise ValueError(f"the predictions cannot go to {run_uri}, which is the folder of the pictures; name one beside or below it")
    for name in RUN_FOLDERS:
        if storage.spell_below(images_uri, storage.join_uri(run_uri, name)):
            raise ValueError(f"the predictions cannot go to {run_uri}, whose folder {name}/ has the pictures in it; name another place")


def _list_prefix(images_uri: str, without: str, most: int = 0) -> pa.Table:
    """The files of a prefix; where the storage lists them in their order and no more than `most` are wanted, these alone are listed."""
    if without:
        require_apart(images_uri, without)
    results = storage.spell_below(without, images_uri) if without else None
    listed = storage.list_sizes(images_uri)
    # Directory buckets of S3 and their access points have names that end so, and no order.
    if most and storage.is_s3(images_uri) and not any(name.endswith(("--x-s3", "--xa-s3")) for name in images_uri.split("/")[2:4]):
        listed = itertools.islice((item for item in listed if not (results and item[0].startswith(results))), most)
    parts = []
    for chunk in _chunks(listed):
        uris, sizes = zip(*chunk, strict=True)
        try:
            parts.append(pa.table({"uri": pa.array(uris, _URI), "size": pa.array(sizes, pa.int64())}))
        except UnicodeEncodeError as error:
            raise ValueError(f"a file name that is not UTF-8 cannot be an input: {os.fsencode(error.object)!r}; rename it") from error
    if not parts:
        return pa.table({"uri": pa.array([], _URI)})
    table = pa.concat_tables(parts)
    if results:
        table = table.filter(pc.invert(pc.starts_with(table["uri"], results)))
    return _complete(table.sort_by("uri"))


def _chunks(items: Iterator[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    chunk: list[tuple[str, int]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read_manifest(manifest_uri: str) -> pa.Table:
    """A text file has a URI per line; CSV (with a header) and Parquet have a column `uri`, and maybe a person per row.

    The person is `center_x`, `center_y` and `scale` as MPII has them (0-based), or a box `x1`, `y1`, `x2`, `y2`, in image px as stored;
    both may be empty. A URI without a scheme or a leading slash is relative to the manifest's folder.
    """
    try:
        data = storage.read_bytes(manifest_uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if isinstance(error, IsADirectoryError) or _has_files(manifest_uri):
            raise ValueError(
                f"{manifest_uri} is a folder, and a manifest is one file: name the file in it, or write all rows into one and name that; "
                f"if it is a folder of pictures, its name must not end in {' or '.join(MANIFEST_FORMATS)}"
            ) from error
        raise ValueError(f"no manifest at {manifest_uri}") from error
    try:
        table = _parse_manifest(manifest_uri, data)
    except (pa.ArrowException, KeyError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{manifest_uri} is no manifest: {error}") from error
    if "uri" not in table.column_names:
        raise ValueError(f"the manifest {manifest_uri} needs a column uri, it has {', '.join(table.column_names)}")
    try:
        kept = {name: _URI if name == "uri" else pa.float64() for name in table.column_names if name in ("uri", *_CENTER, *_BOX)}
        table = pa.table({name: table[name].cast(kind) for name, kind in kept.items()})
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"the manifest {manifest_uri} has values of the wrong kind: {error}") from error
    if table["uri"].null_count or pc.any(pc.equal(table["uri"], "")).as_py():
        raise ValueError(f"the manifest {manifest_uri} has rows without a URI")
    remote = table["uri"].filter(pc.match_substring(table["uri"], "://"))
    for scheme in pc.unique(pc.list_element(pc.split_pattern(remote, "://", max_splits=1), 0)).to_pylist():
        storage.open_filesystem(remote[pc.index(pc.starts_with(remote, f"{scheme}://"), True).as_py()].as_py())
    table = table.set_column(table.column_names.index("uri"), "uri", _absolute(table["uri"], posixpath.dirname(manifest_uri)))
    # Rows of one picture keep their order: their place tells them apart.
    order = table.append_column("row", pa.array(np.arange(table.num_rows))).sort_by([("uri", "ascending"), ("row", "ascending")])
    return _complete(order.drop_columns(["row"]), manifest_uri)


def _has_files(uri: str) -> bool:
    """Whether there are files below what cannot be read as one: a store of objects knows no folders."""
    try:
        return next(storage.list_sizes(uri), None) is not None
    except OSError:  # Web servers have no listings.
        return False


def _parse_manifest(manifest_uri: str, data: bytes) -> pa.Table:
    if manifest_uri.lower().endswith(".parquet"):
        file = pq.ParquetFile(pa.BufferReader(data))
        return file.read(columns=[name for name in file.schema_arrow.names if name in ("uri", *_CENTER, *_BOX)])
    if manifest_uri.lower().endswith(".csv"):
        # `uri, x1, y1, x2, y2`, as people write it, would be a list without people.
        spelled = {name.strip(): name for name in pyarrow.csv.open_csv(io.BytesIO(data)).schema.names}
        uri = spelled.get("uri", "uri")
        options = pyarrow.csv.ConvertOptions(column_types={uri: _URI}, strings_can_be_null=True)
        table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)
        table = table.rename_columns([name.strip() for name in table.column_names])
        if uri == "uri":
            return table
        return table.set_column(table.column_names.index("uri"), "uri", pc.utf8_trim_whitespace(table["uri"]))
    lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    return pa.table({"uri": pa.array([line for line in lines if line], _URI)})


def _absolute(uris: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    is_absolute = pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/"))
    if pc.all(is_absolute).as_py():
        return uris
    joined = pc.binary_join_element_wise(pa.scalar(folder or os.getcwd(), _URI), uris, pa.scalar("/", _URI))
    return pc.if_else(is_absolute, uris, joined)


def _complete(table: pa.Table, source: str = "") -> pa.Table:
    """Adds what is missing of INPUT but sample_id; boxes become centres and scales."""
    count = table.num_rows
    values = {name: _floats(table, name) for name in (*_CENTER, *_BOX)}
    center, box = (np.column_stack([values[name] for name in names]) for names in (_CENTER, _BOX))
    is_center, is_box = (np.isfinite(numbers).all(axis=1) for numbers in (center, box))
    partly = [int((np.isfinite(numbers).any(axis=1) & ~whole).sum()) for numbers, whole in ((center, is_center), (box, is_box))]
    if any(partly):
        names = ", ".join(_CENTER if partly[0] else _BOX)
        raise ValueError(f"{source} has {sum(partly)} rows with a part of {names}; give all of them or none")
    side = np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
    wrong = (is_center & ~(center[:, 2] > 0)) | (is_box & ~is_center & ~(side > 0))
    if wrong.any():
        first = table["uri"][int(np.flatnonzero(wrong)[0])].as_py()
        raise ValueError(f"{source} has {int(wrong.sum())} people without a size (scale > 0, x2 > x1 or y2 > y1), the first one in {first}")
    places = np.concatenate([box[is_box], center[is_center & ~is_box, :2].repeat(2, axis=1)])
    if places.size and places.min() >= 0 and places.max() <= 1:
        names = ", ".join(_BOX if is_box.any() else _CENTER[:2])
        raise ValueError(f"all of {names} in {source} lie between 0 and 1; they are px of the picture, not shares of its size")
    scale = np.where(is_center, center[:, 2], side / PERSON_HEIGHT)
    x = np.where(is_center, center[:, 0], (box[:, 0] + box[:, 2]) / 2)
    # MPII's protocol looks a little below its centre; the square is to lie around the box.
    y = np.where(is_center, center[:, 1], (box[:, 1] + box[:, 3]) / 2 - PERSON_SHIFT * scale)
    given = is_center | is_box
    columns = {name: pa.array(numbers, pa.float64(), mask=~given) for name, numbers in zip(_CENTER, (x, y, scale), strict=True)}
    columns["person_from"] = pa.array(np.where(is_center, "center", "box"), pa.string(), mask=~given)
    size = table["size"] if "size" in table.column_names else pa.nulls(count, pa.int64())
    return pa.table({"uri": table["uri"], "size": size, **columns})


def _floats(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _sample_ids(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The URIs, with #k where neighbours are equal."""
    if len(uris) < 2:
        return uris
    flat = uris.combine_chunks()
    is_repeated = np.r_[False, np.asarray(pc.equal(flat[1:], flat[:-1]))]
    if not is_repeated.any():
        return uris
    places = np.arange(len(flat))
    starts = np.maximum.accumulate(np.where(is_repeated, 0, places))
    is_several = is_repeated | np.r_[is_repeated[1:], False]
    numbers = pa.array(places - starts).cast(_URI)
    mark = "#"
    while True:
        ids = pc.if_else(pa.array(is_several), pc.binary_join_element_wise(flat, numbers, pa.scalar(mark, _URI)), flat)
        # A picture may really be called a.jpg#0.
        if pc.count_distinct(ids).as_py() == len(ids):
            return pa.chunked_array([ids])
        mark += "#"


def _sampled(uris: pa.ChunkedArray, fraction: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    limit = round(fraction * 16**8)
    return np.fromiter((int(storage.sha256(uri.encode())[:8], 16) < limit for uri in uris.to_pylist()), bool, len(uris))


def fingerprint(table: pa.Table) -> str:
    """sha256 of the values of an INPUT table, whatever the library that stores it."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode())
        for start in range(0, table.num_rows, _CHUNK):
            column = table[name].slice(start, _CHUNK)
            if pa.types.is_string(column.type):
                digest.update("\0".join("\1" if value is None else value for value in column.to_pylist()).encode() + b"\0")
            else:
                digest.update(column.cast(pa.float64()).to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def write_inputs(run_uri: str, table: pa.Table, shard_size: int) -> list[str]:
    """Stores the list, a row group per shard, so that a task reads its own; returns the files, which are named after their bytes."""
    files = []
    for number, start in enumerate(range(0, table.num_rows, shard_size * SHARDS_PER_FILE)):
        part = table.slice(start, shard_size * SHARDS_PER_FILE)
        data = storage.to_parquet(part, row_group_size=shard_size)
        files.append(f"{INPUTS_FOLDER}/part-{number:05d}-{storage.sha256(data)[:12]}.parquet")
        storage.write_bytes(storage.join_uri(run_uri, files[-1]), data)
    return files


def read_shard(run_uri: str, files: Sequence[str], shard: int) -> list[dict[str, Any]]:
    """The INPUT rows of one shard; files: of `write_inputs`."""
    file, group = divmod(shard, SHARDS_PER_FILE)
    data = storage.read_bytes(storage.join_uri(run_uri, files[file]))
    return pq.ParquetFile(pa.BufferReader(data)).read_row_group(group).to_pylist()
