"""One shard of prepare, without Ray: its files, what is wrong with its pictures, and how often they are decoded."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from posepipe import cutting, images, mpii, samples, storage


def shard(mpii_uri: str, splits: tuple[str, ...] = ("train", "val")) -> pa.Table:
    """All people of the data set, in turn of these splits."""
    _, persons = mpii.read_annotations(mpii_uri)
    return persons.append_column("split", pa.array([splits[place % len(splits)] for place in range(persons.num_rows)]))


def cut(mpii_uri: str, samples_uri: Path, people: pa.Table, framing: str = "person") -> dict[str, Any]:
    writer = cutting.ShardWriter(f"{mpii_uri}/images", str(samples_uri), framing, (64, 64), (0, 0))
    result: dict[str, Any] = json.loads(writer({"shard": 7, "people": cutting.pack(people)})["result"])
    return result


def test_each_split_of_a_shard_is_a_file_that_says_how_many_rows_it_has(synthetic_mpii: str, tmp_path: Path) -> None:
    people = shard(synthetic_mpii)
    result = cut(synthetic_mpii, tmp_path, people)
    assert result["errors"] == []
    assert result["num_images"] == len(set(people["image"].to_pylist()))
    assert {item["file"] for item in result["files"]} == {
        f"{item['split']}/part-00007-{item['sha256'][:12]}.parquet" for item in result["files"]
    }
    assert {item["split"] for item in result["files"]} == {"train", "val"}
    for item in result["files"]:
        table = storage.read_table(str(tmp_path / item["file"]))
        assert table.schema.equals(samples.SAMPLE)
        assert (set(table["split"].to_pylist()), table.num_rows) == ({item["split"]}, item["rows"])
        assert storage.sha256((tmp_path / item["file"]).read_bytes()) == item["sha256"]
    assert sum(item["rows"] for item in result["files"]) == people.num_rows


def test_a_retry_writes_the_same_bytes(synthetic_mpii: str, tmp_path: Path) -> None:
    first, second = (cut(synthetic_mpii, tmp_path / name, shard(synthetic_mpii)) for name in ("first", "second"))
    assert first == second


def test_who_was_replaced_and_goes_on_writes_over_nothing(synthetic_mpii: str, tmp_path: Path) -> None:
    people = shard(synthetic_mpii)
    result = cut(synthetic_mpii, tmp_path, people, "person")
    cut(synthetic_mpii, tmp_path, people, "image")
    for item in result["files"]:
        assert storage.sha256((tmp_path / item["file"]).read_bytes()) == item["sha256"]


def test_a_picture_of_several_people_gives_each_of_them_what_it_gives_one(synthetic_mpii: str, tmp_path: Path) -> None:
    people = shard(synthetic_mpii, ("train",))
    [file] = cut(synthetic_mpii, tmp_path, people)["files"]
    together = storage.read_table(str(tmp_path / file["file"])).to_pylist()
    assert len({row["image"] for row in together}) < len(together)
    for place, row in enumerate(together):
        data = (Path(synthetic_mpii) / "images" / row["image"]).read_bytes()
        person = people.slice(place, 1)
        alone = samples.build_table(person, [samples.cut(data, person.to_pylist()[0], "person", (64, 64))], "person")
        np.testing.assert_equal(row, alone.to_pylist()[0])


def test_a_bad_picture_is_an_error_of_each_of_its_people(synthetic_mpii: str, tmp_path: Path) -> None:
    shutil.copytree(synthetic_mpii, tmp_path / "mpii")
    people = shard(synthetic_mpii, ("train",))
    names = people["image"].to_pylist()
    crowded = max(set(names), key=names.count)
    assert names.count(crowded) > 1
    (tmp_path / "mpii" / "images" / crowded).write_bytes(b"<html>")
    result = cut(str(tmp_path / "mpii"), tmp_path / "samples", people)
    assert [(row["image"], row["status"]) for row in result["errors"]] == [(crowded, "not_an_image")] * names.count(crowded)
    assert [item["rows"] for item in result["files"]] == [people.num_rows - names.count(crowded)]


def test_a_whole_picture_is_decoded_once_for_all_of_its_people(
    synthetic_mpii: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = images._decode_jpeg, []
    monkeypatch.setattr(images, "_decode_jpeg", lambda *arguments: calls.append(arguments) or decode(*arguments))
    people = shard(synthetic_mpii)
    result = cut(synthetic_mpii, tmp_path, people, "image")
    assert len(calls) == result["num_images"] < people.num_rows
