"""What the tasks of prepare do: the people of a shard -> their samples, a file per split."""

import io
from typing import Any

import pyarrow as pa

from posepipe import fetching, images, samples, storage


def pack(people: pa.Table) -> bytes:
    """A table as the bytes that `write_shard` takes."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, people.schema) as writer:
        writer.write_table(people)
    return sink.getvalue()


def write_shard(
    shard: int, packed: bytes, images_uri: str, samples_uri: str, framing: str, size: tuple[int, int], margin: tuple[int, int]
) -> dict[str, Any]:
    """Cuts and writes the samples of one shard. Its files depend on nothing but the arguments, so a retry writes the same bytes.

    Args:
        shard: its number, which names its files.
        packed: `pack` of a PERSON table with the column `split`.
        images_uri: folder of the pictures.
        samples_uri: folder of the samples.
        framing: image or person.
        size: width and height of the crops, px.
        margin: crop px (x, y) to store around them on each side.

    Returns:
        files (the manifest's entries), errors (ERROR rows) and num_images.
    """
    people: dict[str, list[dict[str, Any]]] = {}
    for person in pa.ipc.open_stream(packed).read_all().to_pylist():
        people.setdefault(person["image"], []).append(person)
    uris = {storage.join_uri(images_uri, name): name for name in people}
    rows: dict[str, list[dict[str, Any]]] = {}
    errors: list[dict[str, Any]] = []
    for uri, data in fetching.read_ahead(list(uris), images.MAX_BYTES):
        decoded: samples.Decoded = {}
        for person in people[uris[uri]]:
            try:
                sample = samples.build_sample(data, person, framing, size, margin, decoded)
                rows.setdefault(person["split"], []).append(sample)
            except images.ImageError as error:
                known = {name: person[name] for name in ("image", "person_index", "split")}
                errors.append({**known, "status": error.status, "detail": error.detail})
    files = []
    for split, split_rows in rows.items():
        name = f"{split}/part-{shard:05d}.parquet"
        table = pa.Table.from_pylist(split_rows, samples.SAMPLE)
        sha256 = storage.write_table(storage.join_uri(samples_uri, name), table, packed=["crop"])
        files.append({"file": name, "split": split, "rows": len(split_rows), "sha256": sha256})
    return {"files": files, "errors": errors, "num_images": len(people)}
