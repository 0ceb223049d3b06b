"""reading.py: a shard's inputs become rows in their order and crops of the good ones, framed and upright."""

import io
import json
import os
import pickle
import platform
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_samples import build_sample, person, picture, to_table

from posepipe import fetching, images, inputs, journal, reading, storage, web_reads
from posepipe.decoding import Decoder
from posepipe.geometry import frame_image, frame_person
from posepipe.reading import ShardReader
from posepipe.retrying import StorageUnavailableError

WIDTH, HEIGHT = 160, 120
SIZES = ((32, 32), (48, 64))


def smooth():
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return Image.fromarray(np.stack([x, 2 * y, 255 - x], axis=-1).astype(np.uint8))


def encode(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


GOOD = encode(smooth())


@pytest.fixture
def shard(tmp_path):
    """Writes files and a manifest's rows as the only shard of a run, reads it and returns its rows, what belongs to them and its crops."""

    def write_and_read(files, table=None, framing="image", sizes=SIZES, **limits):
        for name, data in files.items():
            storage.write_bytes(str(tmp_path / "pictures" / name), data)
        manifest = tmp_path / "pictures" / "manifest.csv"
        manifest.write_text(table or "uri\n" + "\n".join(files))
        stored = inputs.write_inputs(str(tmp_path / "run"), inputs.read_inputs(str(manifest)), 1000)
        return split(reader(tmp_path, framing, sizes, stored, **limits)({"shard": 0, "spec": "{}"}), sizes)

    return write_and_read


def reader(tmp_path, framing="image", sizes=SIZES, files=(), max_bytes=2**20, max_pixels=10**6, **others):
    run_uri = str(tmp_path / "run")
    return ShardReader(run_uri, tuple(files), f"{run_uri}/done/x", framing, sizes, max_bytes, max_pixels, **others)


def split(row, sizes):
    """The known rows, all that was read, and the crops (N, height, width, 3) by size."""
    assert (row["shard"], row["done"]) == (0, "")
    read = pickle.loads(row["rows"])
    count, crops, start = sum(known["status"] == "ok" for known in read["known"]), {}, 0
    for size in sizes:
        width, height = size
        end = start + count * 3 * width * height
        crops[size] = np.frombuffer(row["pixels"][start:end], np.uint8).reshape(count, height, width, 3)
        start = end
    assert start == len(row["pixels"]), "there are crops of no row"
    assert read["crop_to_image"].shape == (len(sizes), count, 2, 3)
    return read["known"], read, crops


def expected_crop(data, affine, size):
    return images.crop(data, images.read_header(data), affine, size)


# Pictures


def test_rows_come_in_the_order_of_inputs_and_crops_of_the_good_ones_alone(shard):
    darker = encode(Image.eval(smooth(), lambda value: value // 2))
    files = {"a.png": GOOD, "b.jpg": b"", "d.png": darker, "e.jpg": b"<html>", "f.png": GOOD[:200], "g.png": GOOD}
    table = "uri\nf.png\na.png\nb.jpg\nc-gone.jpg\nd.png\ng.png\ne.jpg\n"
    rows, _, crops = shard(files, table)
    assert [row["uri"].rpartition("/")[2] for row in rows] == ["a.png", "b.jpg", "c-gone.jpg", "d.png", "e.jpg", "f.png", "g.png"]
    assert [row["status"] for row in rows] == ["ok", "empty", "missing", "ok", "not_an_image", "truncated", "ok"]
    assert [(row["width"], row["height"]) for row in rows][::3] == [(WIDTH, HEIGHT)] * 3
    assert all(bool(row["detail"]) == (row["status"] != "ok") for row in rows)
    assert all(row["framing"] == "image" and row["person_from"] is None for row in rows)
    for size in SIZES:
        affine = frame_image(WIDTH, HEIGHT, size)
        for crop, data in zip(crops[size], (GOOD, darker, GOOD), strict=True):
            np.testing.assert_array_equal(crop, expected_crop(data, affine, size))


def test_crops_come_with_the_frame_of_their_size(shard):
    _, read, _ = shard({"a.png": GOOD, "b.png": encode(smooth().resize((50, 70)))})
    for size, affines in zip(SIZES, read["crop_to_image"], strict=True):
        np.testing.assert_array_equal(affines, [frame_image(WIDTH, HEIGHT, size), frame_image(50, 70, size)])


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES])
def test_a_shard_without_a_good_picture_has_rows_and_no_crops(shard, sizes):
    rows, _, crops = shard({"a.jpg": b"", "b.jpg": b"no picture"}, sizes=sizes)
    assert [row["status"] for row in rows] == ["empty", "not_an_image"]
    assert all(len(of_size) == 0 for of_size in crops.values())


def test_limits_of_bytes_and_pixels_are_statuses(shard):
    rows, _, _ = shard({"a.png": GOOD, "b.png": encode(Image.new("1", (101, 200)))}, max_bytes=len(GOOD) - 1, max_pixels=101 * 200 - 1)
    assert [row["status"] for row in rows] == ["too_large", "too_large"]
    assert rows[0]["detail"] == f"{len(GOOD)} bytes, the limit is {len(GOOD) - 1}"
    assert "101 x 200 pixels, the limit is 20199" in rows[1]["detail"]


def test_a_web_server_that_was_given_up_is_a_status(shard, monkeypatch):
    monkeypatch.setattr(web_reads, "_silent", {})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}/a.png"
        rows, _, crops = shard({"b.png": GOOD}, f"uri\n{gone}\nb.png\n", unreachable_after=0.1)
    assert [row["status"] for row in rows] == ["ok", "unreachable"]
    assert "the storage failed for 0.1 s" in rows[1]["detail"]
    assert [len(of_size) for of_size in crops.values()] == [1, 1]


def test_the_limit_of_bytes_may_be_raised(shard, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    monkeypatch.setattr(reading, "shared_decoder", lambda: InProcess())
    rows, _, _ = shard({"a.png": GOOD}, max_bytes=2**20)
    assert rows[0]["status"] == "ok"


class InProcess:
    """A decoder of this process, which a test can reach into."""

    def decode_all(self, requests):
        from posepipe.views import decode

        return [decode(*request) for request in requests]


@pytest.mark.parametrize("niceness", [0, 3])
def test_reading_and_decoding_do_not_interrupt_networks_on_the_same_cores(shard, monkeypatch, niceness):
    policies, priorities = [], []

    def start_decoder():
        decoders.append(Decoder())
        policies.append((os.sched_getscheduler(0), os.sched_getscheduler(decoders[-1]._process.pid)))
        priorities.extend(os.getpriority(os.PRIO_PROCESS, process) for process in (0, decoders[-1]._process.pid))
        return decoders[-1]

    decoders = []
    monkeypatch.setattr(reading, "shared_decoder", start_decoder)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as pool:  # the tests' own thread stays as it is
        rows, _, _ = pool.submit(shard, {"good.png": GOOD}, niceness=niceness).result()
    decoders[0].close()
    assert [row["status"] for row in rows] == ["ok"]
    assert policies == [(os.SCHED_BATCH, os.SCHED_BATCH)]
    assert priorities == [min(own + niceness, 19)] * 2


_FAULTS = """
import resource, sys
from posepipe import reading
if sys.argv[1] == "kept":
    reading._keep_buffers()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [bytearray(2**21) for _ in range(20)]  # 40 MiB: more than glibc keeps by itself
        del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_reader_keeps_its_memory_from_shard_to_shard():
    def count(kind):
        return int(subprocess.run([sys.executable, "-c", _FAULTS, kind], capture_output=True, text=True, check=True).stdout)

    assert count("kept") < count("given back") / 10


def test_a_turned_picture_is_upright_in_its_crop(shard):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(smooth().transpose(Image.Transpose.ROTATE_90), exif=exif)
    rows, _, crops = shard({"a.png": GOOD, "b.png": turned})
    assert [(row["width"], row["height"]) for row in rows] == [(WIDTH, HEIGHT), (HEIGHT, WIDTH)]
    np.testing.assert_array_equal(*crops[32, 32])


def test_a_storage_that_is_gone_is_no_status(shard, monkeypatch):
    def fetch(*_, **__):
        raise StorageUnavailableError("gone")

    monkeypatch.setattr(fetching, "_fetch", fetch)
    with pytest.raises(StorageUnavailableError, match="gone"):
        shard({"a.png": GOOD})


def test_after_a_shard_that_failed_midway_the_next_one_has_its_own_crops(shard, monkeypatch):
    grey = {f"{value:03d}.png": encode(Image.new("RGB", (40, 40), (value,) * 3)) for value in range(10, 250, 10)}
    monkeypatch.setattr(fetching, "TOGETHER", 4)
    fetch, calls = fetching._fetch, []

    def fail_later(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise StorageUnavailableError("gone")
        return fetch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_fetch", fail_later)
        with pytest.raises(StorageUnavailableError, match="gone"):
            shard(grey)
    _, _, crops = shard(dict(reversed(grey.items())))
    assert crops[32, 32][:, 5, 5, 0].tolist() == list(range(10, 250, 10))


def test_a_uri_that_nobody_can_open_is_a_row(shard):
    rows, _, _ = shard({"a.png": GOOD}, "uri\na.png\nz\0.png\n")
    assert rows[1]["status"] in ("missing", "unreadable")


# People


@pytest.mark.parametrize(
    ("orientation", "turn"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)]
)
def test_a_box_of_a_turned_picture_is_framed_as_that_of_the_upright_one(shard, orientation, turn):
    box = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    box[30:70, 50:80] = 255  # x 50 to 79, y 30 to 69
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(box).transpose(turn)
    light = np.argwhere(np.asarray(stored)[..., 0])
    (y1, x1), (y2, x2) = light.min(axis=0), light.max(axis=0)
    table = f"uri,x1,y1,x2,y2\na.png,50,30,79,69\nb.png,{x1},{y1},{x2},{y2}\n"
    _, _, crops = shard({"a.png": encode(Image.fromarray(box)), "b.png": encode(stored, exif=exif)}, table, framing="person")
    for upright, turned in crops.values():
        np.testing.assert_allclose(turned.astype(int), upright, atol=1)


def test_people_are_framed_by_their_centre_and_scale_or_box(shard):
    table = "uri,center_x,center_y,scale,x1,y1,x2,y2\na.png,70,50,0.2,,,,\na.png,,,,60,40,100,60\na.png,,,,,,,\n"
    rows, read, crops = shard({"a.png": GOOD}, table, framing="person")
    assert [(row["status"], row["person_from"], row["framing"]) for row in rows] == [
        ("ok", "center", "person"),
        ("ok", "box", "person"),
        ("no_person", None, "person"),
    ]
    assert rows[2]["detail"] == "the manifest gives no person for this row"
    assert [row["sample_id"].rpartition("#")[2] for row in rows] == ["0", "1", "2"]
    # The box is 40 px wide: scale 0.2, its middle (80, 50) lies 15 scales below MPII's centre.
    for place, center in enumerate([(70, 50), (80, 47)]):
        for size, affines in zip(SIZES, read["crop_to_image"], strict=True):
            affine = frame_person(center, 0.2, size)
            np.testing.assert_allclose(affines[place], affine)
            np.testing.assert_array_equal(crops[size][place], expected_crop(GOOD, affine, size))


def test_a_person_beside_the_picture_is_nobody(shard):
    # One of another picture, say, or of a larger copy of this one.
    rows, _, _ = shard({"a.png": GOOD}, f"uri,x1,y1,x2,y2\na.png,{WIDTH + 90},10,{WIDTH + 130},50\na.png,0,0,40,40\n", framing="person")
    assert [row["status"] for row in rows] == ["no_person", "ok"]
    assert "lies beside the picture" in rows[0]["detail"]
    assert (rows[0]["person_from"], rows[0]["width"], rows[0]["height"]) == ("box", WIDTH, HEIGHT)


def test_whole_pictures_need_no_people_and_do_not_say_whose_they_are(shard):
    rows, _, _ = shard({"a.png": GOOD}, "uri,center_x,center_y,scale\na.png,70,50,0.2\na.png,,,\n")
    assert [(row["status"], row["person_from"]) for row in rows] == [("ok", None)] * 2


def test_a_turned_picture_of_a_person_is_upright_in_its_crop(shard):
    # A point (x, y) of the 160 x 120 picture lies at (y, 159 - x) in the stored one.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(smooth().transpose(Image.Transpose.ROTATE_90), exif=exif)
    table = f"uri,center_x,center_y,scale\na.png,70,50,0.3\nb.png,50,{159 - 70},0.3\n"
    rows, _, crops = shard({"a.png": GOOD, "b.png": turned}, table, framing="person")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    for size in SIZES:
        upright, other = crops[size].astype(int)
        assert upright.std() > 10
        np.testing.assert_allclose(other, upright, atol=1)


def test_a_frame_that_no_picture_has_is_a_status(shard):
    rows, _, crops = shard({"a.png": GOOD}, "uri,center_x,center_y,scale\na.png,70,50,0.2\na.png,70,50,1e6\n", framing="person")
    assert [row["status"] for row in rows] == ["ok", "unsupported"]
    assert (rows[1]["width"], rows[1]["height"]) == (WIDTH, HEIGHT)
    assert len(crops[32, 32]) == 1


def test_what_the_first_stage_found_goes_before_the_stored_list(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "read_shard", lambda *_: pytest.fail("was read again"))
    storage.write_bytes(str(tmp_path / "a.png"), GOOD)
    common = {"uri": str(tmp_path / "a.png"), "size": None}
    nobody = {"center_x": None, "center_y": None, "scale": None, "person_from": None}
    framed = [
        {**common, "sample_id": "a#0", "center_x": 70.0, "center_y": 50.0, "scale": 0.2, "person_from": "first_stage"},
        {**common, **nobody, "sample_id": "a#1", "status": "truncated", "detail": "half", "width": 5, "height": 6},
        {**common, **nobody, "sample_id": "a#2", "status": "no_person", "detail": "a head of 0 px"},
    ]
    row = reader(tmp_path, "person")({"shard": 0, "inputs": pickle.dumps(framed), "done": ""})
    rows, _, _ = split(row, SIZES)
    assert [(each["status"], each["detail"], each["person_from"]) for each in rows] == [
        ("ok", "", "first_stage"),
        ("truncated", "half", None),
        ("no_person", "a head of 0 px", None),
    ]
    assert (rows[1]["width"], rows[1]["height"]) == (5, 6)


# What is done


def test_a_shard_that_is_done_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "read_shard", lambda *_: pytest.fail("was read"))
    found = reader(tmp_path)
    record = journal.commit_part(found.run_uri, found.done_uri, 3, pa.table({"x": [1]}), {"statuses": {"ok": 1}})
    row = found({"shard": 3, "spec": "{}"})
    assert json.loads(row.pop("done")) == record
    assert row == {"shard": 3, "rows": b"", "pixels": b""}
    # As the first stage passes it on.
    assert json.loads(found({"shard": 4, "inputs": b"", "done": json.dumps(record)})["done"]) == record


# Samples


def sample_row(size=(32, 32), margin=(0, 0), **changes):
    return build_sample(picture(), person(**changes), "person", size, margin)


def test_samples_are_read_with_their_labels_and_crops(tmp_path):
    table = to_table(sample_row(), sample_row(person_index=3, center=[200.0, 90.0]))
    storage.write_table(str(tmp_path / "part.parquet"), table)
    spec = json.dumps({"samples": str(tmp_path / "part.parquet"), "images": "s3://b/images"})
    rows, read, crops = split(reader(tmp_path, "person", SIZES[:1])({"shard": 0, "spec": spec}), SIZES[:1])
    assert [(row["sample_id"], row["uri"], row["status"], row["person_from"]) for row in rows] == [
        (f"a.jpg#{index}", "s3://b/images/a.jpg", "ok", "label") for index in (2, 3)
    ]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["split"]) == (400, 200, "train")
    expected = [images.decode_jpeg(data) for data in table["crop"].to_pylist()]
    np.testing.assert_array_equal(crops[32, 32], expected)
    np.testing.assert_allclose(read["crop_to_image"][0], np.reshape(table["crop_to_image"].to_pylist(), (-1, 2, 3)))
    assert read["labels"]["is_visible"] == table["is_visible"].to_pylist()
    np.testing.assert_array_equal(read["labels"]["joints"].reshape(2, 32), np.array(table["joints"].to_pylist(), dtype=np.float32))


def test_of_samples_with_a_margin_the_crop_is_read_as_from_the_picture(tmp_path):
    size = (48, 64)
    storage.write_table(str(tmp_path / "part.parquet"), to_table(sample_row(size, (10, 13))))
    spec = json.dumps({"samples": str(tmp_path / "part.parquet"), "images": "s3://b/images"})
    _, read, crops = split(reader(tmp_path, "person", (size,))({"shard": 0, "spec": spec}), (size,))
    affine = frame_person(person()["center"], person()["scale"], size)
    np.testing.assert_allclose(read["crop_to_image"][0, 0], affine)
    difference = np.abs(crops[size][0].astype(int) - expected_crop(picture(), affine, size))
    assert difference.mean() < 1


def test_people_whose_picture_could_not_be_used_are_rows(tmp_path):
    failed = [{"image": "gone.jpg", "person_index": 1, "split": "val", "status": "missing", "detail": "FileNotFoundError"}]
    spec = json.dumps({"failed": failed, "images": "s3://b/images"})
    rows, _, _ = split(reader(tmp_path, "person", SIZES[:1])({"shard": 0, "spec": spec}), SIZES[:1])
    [row] = rows
    assert (row["sample_id"], row["uri"], row["status"]) == ("gone.jpg#1", "s3://b/images/gone.jpg", "missing")
