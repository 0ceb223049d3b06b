"""What the tasks of prepare do: the people of a shard -> their samples, a file per split."""

import dataclasses
import io
import json
from typing import Any

import pyarrow as pa

from posepipe import fetching, images, samples, storage


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Cuts and writes the samples of one shard. Its files depend on nothing but the shard and its people: a retry writes the same bytes.

    Columns in: shard (its number, which names its files) and people (`pack` of a PERSON table with the column `split`). Column out: result
    (JSON: files, the manifest's entries; errors, ERROR rows; num_images).

    Attributes:
        images_uri: folder of the pictures.
        samples_uri: folder of the samples.
        framing: image or person.
        size: width and height of the crops, px.
        margin: crop px (x, y) to store around them on each side.
    """

    images_uri: str
    samples_uri: str
    framing: str
    size: tuple[int, int]
    margin: tuple[int, int]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        people = pa.ipc.open_stream(row["people"]).read_all()
        persons = people.select(["image", "person_index", "split", "center", "scale"]).to_pylist()
        places: dict[str, list[int]] = {}
        for place, person in enumerate(persons):
            places.setdefault(storage.join_uri(self.images_uri, person["image"]), []).append(place)
        cuts: dict[str, dict[int, samples.Cut]] = {}
        errors: list[dict[str, Any]] = []
        for uri, data in fetching.read_ahead(list(places), images.MAX_BYTES):
            decoded: samples.Decoded = {}
            for place in places[uri]:
                person = persons[place]
                try:
                    cut = samples.cut(data, person, self.framing, self.size, self.margin, decoded)
                    cuts.setdefault(person["split"], {})[place] = cut
                except images.ImageError as error:
                    known = {name: person[name] for name in ("image", "person_index", "split")}
                    errors.append({**known, "status": error.status, "detail": error.detail})
        files = []
        for split, found in cuts.items():
            table = samples.build_table(people.take(list(found)), list(found.values()), self.framing)
            data = storage.to_parquet(table, packed=["crop"])
            sha256 = storage.sha256(data)
            # Named by what it holds: a run that was replaced, and goes on for a while, writes over nothing of its successor's.
            name = f"{split}/part-{row['shard']:05d}-{sha256[:12]}.parquet"
            storage.write_bytes(storage.join_uri(self.samples_uri, name), data)
            files.append({"file": name, "split": split, "rows": len(found), "sha256": sha256})
        return {"result": json.dumps({"files": files, "errors": errors, "num_images": len(places)})}


def pack(people: pa.Table) -> bytes:
    """A table as the bytes that `ShardWriter` takes."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, people.schema) as writer:
        writer.write_table(people)
    return sink.getvalue()
