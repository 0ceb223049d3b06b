"""What the CPU tasks of a scoring run do: the inputs of a shard -> crops."""

import contextlib
import ctypes
import dataclasses
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from posepipe import fetching, geometry, images, inputs, journal, samples, storage
from posepipe.decoding import shared_decoder
from posepipe.views import Decoded, View

_OWN_NICENESS, _NICEST = os.getpriority(os.PRIO_PROCESS, 0), 19
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Of SAMPLE; samples of older versions have no activity.
_CARRIED = ("sample_id", "image", "split", "framing", "width", "height", "activity")


@dataclasses.dataclass(frozen=True)
class ShardReader:
    """A shard's inputs -> crops, of every size that a model wants.

    Columns in: shard, and spec (JSON: a file of samples, or nothing for a shard of the stored inputs) or inputs (pickled, of FirstStage).
    Columns out: shard, rows (pickled), pixels (the crops of the good rows, size after size), done (its JSON where the shard is done).

    Attributes:
        run_uri: the scoring run's folder.
        files: of its inputs, below it.
        done_uri: where its done records lie.
        framing: of the models.
        sizes: widths and heights of crops, px, each once.
        max_bytes: of an encoded picture.
        max_pixels: of a decoded picture.
        unreachable_after: seconds after which a web server is given up; 0 for never.
        niceness: how much nicer than actors the processes are that read and decode.
    """

    run_uri: str
    files: tuple[str, ...]
    done_uri: str
    framing: str
    sizes: tuple[tuple[int, int], ...]
    max_bytes: int
    max_pixels: int
    unreachable_after: float = 0
    niceness: int = 0

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = row["shard"]
        _let_networks_work(self.niceness)
        _keep_buffers()
        # Ray repeats a task whose result it lost, also where an actor had committed it.
        done = row.get("done") or json.dumps(journal.read_done(self.done_uri, shard))
        if done != "null":
            return {"shard": shard, "rows": b"", "pixels": b"", "done": done}
        spec = json.loads(row["spec"]) if "spec" in row else {}
        if spec.get("samples") or spec.get("failed"):
            rows, pixels = self._read_samples(spec)
        else:
            wanted = pickle.loads(row["inputs"]) if "inputs" in row else inputs.read_shard(self.run_uri, self.files, shard)
            rows, pixels = self._read_images(wanted)
        return {"shard": shard, "rows": pickle.dumps(rows), "pixels": pixels, "done": ""}

    def _read_images(self, wanted: list[dict[str, Any]]) -> tuple[dict[str, Any], bytearray]:
        known = [
            {name: item[name] for name in ("sample_id", "uri", "person_from")}
            | {"framing": self.framing, "status": item.get("status", "ok"), "detail": item.get("detail", "")}
            | {name: item.get(name) for name in ("width", "height")}
            for item in wanted
        ]
        if self.framing == "image":
            for row in known:
                row["person_from"] = None
        else:
            for row, item in zip(known, wanted, strict=True):
                if row["status"] == "ok" and item["scale"] is None:
                    row |= {"status": "no_person", "detail": "the manifest gives no person for this row"}
        places = [place for place, row in enumerate(known) if row["status"] == "ok"]
        affines = []
        decoded, pixels = self._decode([wanted[place] for place in places])
        for place, found in zip(places, decoded, strict=True):
            known[place] |= {name: getattr(found, name) for name in ("status", "detail", "width", "height")}
            if found.status == "ok":
                affines.append(found.crop_to_image)
        affines_by_size = np.reshape(affines, (-1, len(self.sizes), 2, 3)).swapaxes(0, 1)
        return {"known": known, "crop_to_image": affines_by_size, "labels": None, "inputs": wanted}, pixels

    def _decode(self, wanted: Sequence[dict[str, Any]]) -> tuple[list[Decoded], bytearray]:
        """One per input, in order, without their crops; and these, size after size."""
        found: list[Decoded | None] = []
        requests = []
        uris, sizes = [item["uri"] for item in wanted], [item["size"] for item in wanted]
        with_data = fetching.read_ahead(uris, self.max_bytes, sizes, self.unreachable_after)
        decoder = shared_decoder()

        def readable() -> Iterator[tuple[bytes, list[View], int]]:
            for item, (_, data) in zip(wanted, with_data, strict=True):
                if isinstance(data, OSError):
                    error = images.storage_error(data)
                    found.append(Decoded(error.status, error.detail))
                    continue
                requests.append(len(found))
                found.append(None)
                yield data, [self._view(size, item) for size in self.sizes], self.max_pixels

        # A shard's crops are most of what this process holds, so they are copied once, to where they stay.
        first, *others = [bytearray() for _ in self.sizes]
        for number, decoded in enumerate(decoder.decode_all(readable())):
            found[requests[number]] = dataclasses.replace(decoded, crops=[])
            for pixels, crop in zip((first, *others), decoded.crops, strict=False):
                pixels += crop.data
        for pixels in others:
            first += pixels
        return [each for each in found if each is not None], first

    def _view(self, size: tuple[int, int], item: dict[str, Any]) -> View:
        if self.framing == "image":
            return View(size)
        center, scale = (item["center_x"], item["center_y"]), item["scale"]
        if item["person_from"] != "box":
            return View(size, center, scale)
        # The list of inputs has a centre for it as MPII would, but which way is down is not known before the picture is.
        return View(size, (center[0], center[1] + geometry.PERSON_SHIFT * scale), scale, shift=0.0)

    def _read_samples(self, spec: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        if "failed" in spec:
            names = ("split", "status", "detail")
            known = [
                {
                    **{name: row[name] for name in names},
                    "sample_id": f"{row['image']}#{row['person_index']}",
                    "uri": storage.join_uri(spec["images"], row["image"]),
                    "framing": self.framing,
                }
                for row in spec["failed"]
            ]
            return {"known": known, "crop_to_image": np.empty((1, 0, 2, 3)), "labels": None}, bytearray()
        table = storage.read_table(spec["samples"])
        labels: dict[str, Any] = {**samples.label_arrays(table), "is_visible": table["is_visible"].to_pylist()}
        known = [
            {**row, "uri": storage.join_uri(spec["images"], row.pop("image")), "status": "ok", "detail": ""}
            for row in table.select([name for name in _CARRIED if name in table.column_names]).to_pylist()
        ]
        for row in known:
            row["person_from"] = "label" if row["framing"] == "person" else None
        # Models of one pass that score samples have the samples' size.
        pixels = bytearray()
        for crop in table["crop"].to_pylist():
            pixels += images.cut_margin(images.decode_jpeg(crop), self.sizes[0]).tobytes()
        return {"known": known, "crop_to_image": labels["crop_to_image"][None], "labels": labels}, pixels


def _let_networks_work(niceness: int) -> None:
    """From here on, this thread and the decoder that it starts no longer interrupt an actor of the same cores whenever they wake up.

    Nicer ones also leave it as much of a core as it wants.
    """
    with contextlib.suppress(OSError):  # not every sandbox knows it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(_OWN_NICENESS + niceness, _NICEST))


def _keep_buffers() -> None:
    """From here on this process keeps the memory of a shard for the next one; glibc gives it back, and every page of it is zeroed anew."""
    with contextlib.suppress(AttributeError, OSError):  # another libc
        malloc_option = ctypes.CDLL(None).mallopt
        # Before glibc 2.35 this is refused above 32 MiB.
        if any(malloc_option(_M_MMAP_THRESHOLD, most) for most in (2**30, 2**25)):
            malloc_option(_M_TRIM_THRESHOLD, 2**30)
