"""Samples from a generated data set, on Ray Data."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from posepipe import geometry, images, mpii, preparing, samples, storage, synthetic, writers
from posepipe.config import PrepareConfig
from posepipe.writers import Writer


def config(mpii_uri: str, samples_uri: str | Path, **changes: object) -> PrepareConfig:
    values = {"framing": "person", "people": "all", "size": 64, "val_percent": 25, "shard_size": 16, **changes}
    return PrepareConfig(mpii_uri=mpii_uri, samples_uri=str(samples_uri), **values)  # type: ignore[arg-type]


def read_all(samples_uri: str | Path) -> pa.Table:
    manifest = samples.read_manifest(str(samples_uri))
    return pa.concat_tables([storage.read_table(storage.join_uri(str(samples_uri), item["file"])) for item in manifest["files"]])


def test_every_usable_person_is_one_sample(person_samples: str, synthetic_mpii: str) -> None:
    _, persons = mpii.read_annotations(synthetic_mpii)
    expected = {f"{row['image']}#{row['person_index']}" for row in persons.to_pylist()}
    found = read_all(person_samples)["sample_id"].to_pylist()
    assert Counter(found) == Counter(expected)
    assert len(expected) > 48


def test_labels_map_back_to_the_annotation_file(person_samples: str, synthetic_mpii: str) -> None:
    _, persons = mpii.read_annotations(synthetic_mpii)
    truth = {f"{row['image']}#{row['person_index']}": row for row in persons.to_pylist()}
    for row in read_all(person_samples).to_pylist():
        crop_to_image = np.reshape(row["crop_to_image"], (2, 3))
        joints = geometry.transform(crop_to_image, np.reshape(row["joints"], (16, 2)))
        np.testing.assert_allclose(joints, np.reshape(truth[row["sample_id"]]["joints"], (16, 2)), atol=1e-3)
        assert row["is_annotated"] == truth[row["sample_id"]]["is_annotated"]


def test_test_pictures_keep_their_flag_and_have_no_labels(person_samples: str, synthetic_mpii: str) -> None:
    table, _ = mpii.read_annotations(synthetic_mpii)
    is_train = dict(zip(table["image"].to_pylist(), table["is_train"].to_pylist(), strict=True))
    rows = read_all(person_samples).to_pylist()
    assert all((row["split"] == "test") == (not is_train[row["image"]]) for row in rows)
    tests = [row for row in rows if row["split"] == "test"]
    assert tests
    assert not any(any(row["is_annotated"]) or row["head_box"] for row in tests)
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_a_second_run_writes_the_same_bytes(person_samples: str, synthetic_mpii: str, tmp_path: Path) -> None:
    again = preparing.prepare(config(synthetic_mpii, tmp_path))
    first = samples.read_manifest(person_samples)
    assert [item["sha256"] for item in again["files"]] == [item["sha256"] for item in first["files"]]
    for item in again["files"]:
        assert storage.sha256((tmp_path / item["file"]).read_bytes()) == item["sha256"]


def test_samples_of_other_settings_are_not_mixed(
    ray_session: None, synthetic_mpii: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparing.prepare(config(synthetic_mpii, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(images, "PIXELS", 0)
        with pytest.raises(ValueError, match=r"pixels was \d+, now 0.*--overwrite"):
            preparing.prepare(config(synthetic_mpii, tmp_path))
    with pytest.raises(ValueError, match=r"framing was 'person', now 'image'.*--overwrite"):
        preparing.prepare(config(synthetic_mpii, tmp_path, framing="image"))
    people = (tmp_path / preparing.PERSONS_FILE).read_bytes()
    other = tmp_path / "other"
    synthetic.write_annotations(str(other), [{"name": "a.jpg", "is_train": True, "activity": None, "people": []}])
    with pytest.raises(ValueError, match=r"annotations_sha256 was .*--overwrite"):
        preparing.prepare(config(str(other), tmp_path))
    assert (tmp_path / preparing.PERSONS_FILE).read_bytes() == people, "what is refused has changed nothing"
    assert set(read_all(tmp_path)["framing"].to_pylist()) == {"person"}
    manifest = preparing.prepare(config(synthetic_mpii, tmp_path, framing="image", shard_size=48, overwrite=True))
    assert set(read_all(tmp_path)["framing"].to_pylist()) == {"image"}
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("part-*")}
    assert on_disk == {item["file"] for item in manifest["files"]}


def test_complete_samples_stay_though_their_pictures_are_gone(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    shutil.copytree(synthetic_mpii, tmp_path / "mpii")
    manifest = preparing.prepare(config(str(tmp_path / "mpii"), tmp_path / "samples"))
    before = {path: path.read_bytes() for path in (tmp_path / "samples").rglob("*.parquet")}
    shutil.rmtree(tmp_path / "mpii" / "images")
    assert preparing.prepare(config(str(tmp_path / "mpii"), tmp_path / "samples")) == manifest
    assert {path: path.read_bytes() for path in (tmp_path / "samples").rglob("*.parquet")} == before
    with pytest.raises(ValueError, match="people could be used"):
        preparing.prepare(config(str(tmp_path / "mpii"), tmp_path / "samples", overwrite=True))


def test_files_of_others_stay_and_those_of_older_versions_go(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    others = {"train/part-00000.parquet", "val/part-00000-abc.snappy.parquet", "val/notes/part-00000.parquet"}
    older, partial = "train/part-00001.parquet", f"test/part-00000-{'a' * 12}.parquet.{'b' * 32}.partial"
    for name in (*others, older, partial):
        storage.write_bytes(str(tmp_path / name), b"")
    listed = [{"file": name} for name in (older, "val/notes/part-00000.parquet")]
    storage.write_json(str(tmp_path / storage.MANIFEST), {"files": listed})
    manifest = preparing.prepare(config(synthetic_mpii, tmp_path, overwrite=True))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*part*")}
    assert left - {item["file"] for item in manifest["files"]} == others


def test_a_video_is_in_one_split() -> None:
    videos = [place // 3 if place < 6000 else None for place in range(8000)]
    names = [f"{place:09d}.jpg" for place in range(8000)]
    persons = pa.table({"image": names, "is_train": [True] * 8000, "video": pa.array(videos, pa.int32())})
    splits = preparing._assign_splits(persons, config("mpii", "samples", val_percent=10))["split"].to_pylist()
    of_videos = [set(splits[start : start + 3]) for start in range(0, 6000, 3)]
    assert all(len(found) == 1 for found in of_videos)
    assert 0.08 < of_videos.count({"val"}) / 2000 < 0.12
    # Pictures of which that is not known come one by one.
    assert 0.08 < splits[6000:].count("val") / 2000 < 0.12


def test_bad_and_missing_pictures_become_rows_of_the_errors_table(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    damaged = tmp_path / "mpii"
    shutil.copytree(synthetic_mpii, damaged)
    pictures = damaged / "images"
    (pictures / "000000001.jpg").write_bytes(b"")
    (pictures / "000000002.jpg").write_bytes(b"<html>404</html>")
    whole = (pictures / "000000003.jpg").read_bytes()
    (pictures / "000000003.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "000000004.jpg").unlink()
    manifest = preparing.prepare(config(str(damaged), tmp_path / "samples"))
    errors = storage.read_table(str(tmp_path / "samples" / samples.ERRORS_FILE)).to_pylist()
    statuses = {row["image"]: row["status"] for row in errors}
    assert statuses == {"000000001.jpg": "empty", "000000002.jpg": "not_an_image", "000000003.jpg": "truncated", "000000004.jpg": "missing"}
    _, persons = mpii.read_annotations(str(damaged))
    assert sum(manifest["rows"].values()) + len(errors) == persons.num_rows
    assert sum(manifest["errors"].values()) == len(errors)


def test_nothing_usable_is_an_error(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    empty = tmp_path / "mpii"
    empty.mkdir()
    shutil.copy(Path(synthetic_mpii) / mpii.ANNOTATION_FILE, empty)
    with pytest.raises(ValueError, match=r"none of \d+ people could be used: \{'missing': \d+\}"):
        preparing.prepare(config(str(empty), tmp_path / "samples"))
    with pytest.raises(ValueError, match="no complete samples"):
        samples.read_manifest(str(tmp_path / "samples"))


def test_samples_that_another_process_writes_are_left_to_it(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    with Writer(str(tmp_path), 0.6), pytest.raises(ValueError, match=r"process \d+ is writing .*; wait for it, or stop it"):
        preparing.prepare(config(synthetic_mpii, tmp_path))
    assert not (tmp_path / preparing.PERSONS_FILE).exists()


def test_who_was_taken_over_touches_nothing(
    ray_session: None, synthetic_mpii: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = mpii.parse_annotations

    def take_over(*arguments: Any) -> Any:
        storage.write_json(f"{tmp_path}/{writers.FOLDER}/000002.json", {})
        return parse(*arguments)

    monkeypatch.setattr(mpii, "parse_annotations", take_over)
    (tmp_path / storage.MANIFEST).write_text("{}")
    with pytest.raises(writers.LostRunError, match="was taken over by another writer"):
        preparing.prepare(config(synthetic_mpii, tmp_path, overwrite=True))
    assert (tmp_path / storage.MANIFEST).read_text() == "{}", "the other one's files are not touched"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_validation_list_decides_the_split(ray_session: None, synthetic_mpii: str, tmp_path: Path, kind: str) -> None:
    names = ["000000000.jpg", "000000007.jpg"]
    listed = tmp_path / f"valid.{kind}"
    listed.write_text("\r\n".join(names) + "\n" if kind == "text" else json.dumps([{"image": name, "joints": []} for name in names]))
    preparing.prepare(config(synthetic_mpii, tmp_path / "samples", val_list=str(listed)))
    rows = read_all(tmp_path / "samples").to_pylist()
    assert {row["image"] for row in rows if row["split"] == "val"} == set(names)


def test_a_list_of_people_takes_these_alone_and_leaves_the_others_of_their_pictures_out(
    ray_session: None, synthetic_mpii: str, tmp_path: Path
) -> None:
    _, persons = mpii.read_annotations(synthetic_mpii)
    people = [row for row in persons.to_pylist() if row["is_train"] and row["has_joints"]]
    (image,) = [name for name, count in Counter(row["image"] for row in people).items() if count > 1][:1]
    chosen, *others = [row for row in people if row["image"] == image]
    # HRNet's file has objpos as MPII does: from 1 on.
    listed = [{"image": image, "center": [place + 1 for place in chosen["center"]], "joints": []}, {"image": "far.jpg", "center": [1, 1]}]
    (tmp_path / "valid.json").write_text(json.dumps(listed))
    manifest = preparing.prepare(config(synthetic_mpii, tmp_path / "samples", val_list=str(tmp_path / "valid.json")))
    splits = {row["sample_id"]: row["split"] for row in read_all(tmp_path / "samples").to_pylist()}
    expected = {f"{row['image']}#{row['person_index']}": "train" for row in people if row["image"] != image}
    assert {name: split for name, split in splits.items() if split != "test"} == expected | {f"{image}#{chosen['person_index']}": "val"}
    assert others
    assert manifest["val"]["num_images"] == 2


def test_lists_of_other_people_of_the_same_pictures_are_other_samples(synthetic_mpii: str, tmp_path: Path) -> None:
    found = []
    people = ('[{"image": "a.jpg", "center": [1, 2]}]', '[{"image": "a.jpg", "center": [3, 2]}]')
    for number, text in enumerate(("a.jpg\n", '["a.jpg"]', *people)):
        (tmp_path / str(number)).write_text(text)
        found.append(preparing._settings(config(synthetic_mpii, tmp_path, val_list=str(tmp_path / str(number))), "")["val"]["list_sha256"])
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize("text", ["[1, 2", '[{"center": [1, 2]}]', '[{"image": "a.jpg", "center": 3}]'])
def test_a_validation_list_that_is_none_is_refused(synthetic_mpii: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "valid.json").write_text(text)
    with pytest.raises(ValueError, match=r"is neither a list of names nor HRNet's valid\.json"):
        preparing.prepare(config(synthetic_mpii, tmp_path / "samples", val_list=str(tmp_path / "valid.json")))


def test_pictures_in_folders_are_counted_where_they_lie(synthetic_mpii: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "2.jpg"):
        storage.write_bytes(f"{tmp_path}/images/{name}", b"")
    images = [{"image": name, "is_train": True} for name in ("a/1.jpg", "b/1.jpg", "1.jpg", "2.jpg")]
    tables = pa.Table.from_pylist(images, mpii.IMAGE), mpii.PERSON.empty_table()
    monkeypatch.setattr(mpii, "read_annotations", lambda _: tables)
    assert preparing.inventory(config(str(tmp_path), tmp_path / "samples"))["images_missing"] == 2


def test_a_validation_list_of_another_data_set_is_refused(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("elsewhere.jpg\n")
    with pytest.raises(ValueError, match="none of the 1 names"):
        preparing.prepare(config(synthetic_mpii, tmp_path / "samples", val_list=str(tmp_path / "val.txt")))


def test_single_takes_only_pictures_with_one_person(ray_session: None, synthetic_mpii: str, tmp_path: Path) -> None:
    preparing.prepare(config(synthetic_mpii, tmp_path, people="single", framing="image"))
    taken = read_all(tmp_path)["image"].to_pylist()
    _, persons = mpii.read_annotations(synthetic_mpii)
    counts = Counter(persons["image"].to_pylist())
    assert sorted(taken) == sorted(name for name, count in counts.items() if count == 1)
    assert max(counts.values()) > 1


def test_the_annotation_file_is_parsed_once(
    ray_session: None, synthetic_mpii: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparing.prepare(config(synthetic_mpii, tmp_path))
    monkeypatch.setattr(mpii, "parse_annotations", lambda *_: pytest.fail("parsed again"))
    preparing.prepare(config(synthetic_mpii, tmp_path))


def test_the_crop_holds_the_person(person_samples: str) -> None:
    rows = [row for row in read_all(person_samples).to_pylist() if all(row["is_annotated"])]
    inside = [np.mean((np.asarray(row["joints"]) >= 0) & (np.asarray(row["joints"]) <= 63)) for row in rows]
    assert np.mean(inside) > 0.95
    manifest = samples.read_manifest(person_samples)
    assert (manifest["size"], manifest["margin"]) == ([64, 64], [13, 13])
    assert {images.decode_jpeg(row["crop"]).shape for row in rows} == {(64 + 26, 64 + 26, 3)}


@pytest.mark.parametrize(("changes", "margin"), [({"margin": 0.25}, (12, 16)), ({"framing": "image"}, (0, 0))])
def test_crops_that_are_no_squares_are_stored_with_their_margin(
    ray_session: None, synthetic_mpii: str, tmp_path: Path, changes: dict[str, object], margin: tuple[int, int]
) -> None:
    manifest = preparing.prepare(config(synthetic_mpii, tmp_path, size="48x64", **changes))
    assert (manifest["size"], manifest["margin"]) == ([48, 64], list(margin))
    assert f"48 x 64 px, margin {margin[0]} x {margin[1]} px" in preparing.describe(manifest, str(tmp_path))
    row = read_all(tmp_path).to_pylist()[0]
    assert images.decode_jpeg(row["crop"]).shape == (64 + 2 * margin[1], 48 + 2 * margin[0], 3)
    data = (Path(synthetic_mpii) / "images" / row["image"]).read_bytes()
    affine = np.reshape(row["crop_to_image"], (2, 3))
    exact = images.crop(data, images.read_header(data), affine, (48, 64)).astype(int)
    assert np.abs(images.cut_margin(images.decode_jpeg(row["crop"]), (48, 64)) - exact).mean() < 2


def test_samples_of_another_margin_are_other_samples(person_samples: str, synthetic_mpii: str) -> None:
    with pytest.raises(ValueError, match=r"margin was \[13, 13\], now \[6, 6\]"):
        preparing.prepare(config(synthetic_mpii, person_samples, margin=0.1))


def test_inventory_counts_without_reading_pictures(synthetic_mpii: str, tmp_path: Path) -> None:
    copy = tmp_path / "mpii"
    shutil.copytree(synthetic_mpii, copy)
    (copy / "images" / "000000000.jpg").unlink()
    found = preparing.inventory(PrepareConfig(mpii_uri=str(copy), dry_run=True))
    assert (found["images"], found["train"] + found["test"], found["images_missing"]) == (48, 48, 1)
