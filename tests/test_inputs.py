"""inputs.py: a listing or a manifest becomes sorted rows; people and boxes become centres and scales; the list is stored shard by shard."""

import os
import uuid

import boto3
import numpy as np
import pyarrow as pa
import pytest

from posepipe import inputs, storage
from posepipe.geometry import frame_person, points_to_box, transform
from posepipe.inputs import INPUT, is_manifest, read_inputs, read_shard, write_inputs


@pytest.fixture(params=["path", "file", "memory", "s3"])
def folder(request, tmp_path):
    """An empty folder by its URI."""
    if request.param == "s3":
        bucket = f"inputs-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", endpoint_url=request.getfixturevalue("s3_endpoint")).create_bucket(Bucket=bucket)
        return f"s3://{bucket}/pictures"
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


def write(folder, *names):
    for name in names:
        storage.write_bytes(storage.join_uri(folder, name), b"x" * len(name))


def names_of(table):
    return [uri.rpartition("/")[2] for uri in table["uri"].to_pylist()]


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest and reads its inputs."""

    def write_and_read(content, kind="csv", **options):
        uri = str(tmp_path / f"manifest.{kind}")
        if isinstance(content, pa.Table):
            storage.write_table(uri, content)
        else:
            storage.write_bytes(uri, content if isinstance(content, bytes) else content.encode())
        return read_inputs(uri, **options)

    return write_and_read


# A prefix


def test_all_files_below_a_prefix_are_inputs_sorted_with_their_sizes(folder):
    write(folder, "b.jpg", "a/z.png", "a/b/c", "c d#1%20.jpg")
    table = read_inputs(folder)
    assert table.schema.equals(INPUT)
    assert names_of(table) == ["c", "z.png", "b.jpg", "c d#1%20.jpg"]
    assert table["size"].to_pylist() == [5, 7, 5, 12]
    assert table["sample_id"].to_pylist() == table["uri"].to_pylist() == sorted(table["uri"].to_pylist())
    for name in ("center_x", "center_y", "scale", "person_from"):
        assert table[name].null_count == 4
    assert [storage.read_bytes(uri) for uri in table["uri"].to_pylist()][2] == b"x" * 5


@pytest.mark.parametrize("slash", ["", "/"])
def test_results_inside_the_prefix_are_no_inputs_and_what_is_only_named_alike_is_one(folder, slash):
    write(folder, "a.jpg", "out/parts/part-0.parquet", "out/writers/000001.json", "out2/b.jpg", "out.jpg")
    table = read_inputs(folder, without=storage.join_uri(folder, "out") + slash)
    assert names_of(table) == ["a.jpg", "out.jpg", "b.jpg"]


def test_pictures_inside_the_results_folder_are_inputs(tmp_path):
    write(str(tmp_path), "pictures/a.jpg", "writers/000001.json")
    assert names_of(read_inputs(str(tmp_path / "pictures"), without=str(tmp_path))) == ["a.jpg"]


@pytest.mark.parametrize("name", ["parts", "inputs", "done", "writers", "parts/deep"])
def test_pictures_in_a_folder_that_the_run_keeps_for_itself_are_refused(folder, name):
    kept, _, _ = name.partition("/")
    write(folder, f"{name}/a.jpg", f"{kept}2/a.jpg")
    with pytest.raises(ValueError, match=rf"cannot go to {folder}, whose folder {kept}/ has the pictures in it"):
        read_inputs(storage.join_uri(folder, name), without=folder)
    assert names_of(read_inputs(storage.join_uri(folder, f"{kept}2"), without=folder)) == ["a.jpg"]


def test_the_folder_of_the_pictures_is_not_one_for_results(folder):
    write(folder, "a.jpg")
    with pytest.raises(ValueError, match=rf"cannot go to {folder}, which is the folder of the pictures"):
        read_inputs(folder, without=folder)


def test_a_prefix_with_nothing_but_results_has_no_inputs(tmp_path):
    write(str(tmp_path), "out/a", "out/b")
    with pytest.raises(ValueError, match="no inputs: no files below"):
        read_inputs(str(tmp_path), without=str(tmp_path / "out"))


def test_an_empty_prefix_has_no_inputs(folder):
    with pytest.raises(ValueError, match="no inputs: no files below"):
        read_inputs(folder)


def test_a_listing_of_several_chunks_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_CHUNK", 3)
    names = [f"{index:02d}" for index in range(10)]
    write(str(tmp_path), *names)
    assert names_of(read_inputs(str(tmp_path))) == names


# A part of it


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    with pytest.raises(ValueError, match=r"not UTF-8 cannot be an input: b'.*/caf\\xe9.jpg'; rename it"):
        read_inputs(str(tmp_path))


def test_a_limit_takes_the_first_ones(tmp_path):
    write(str(tmp_path), *"dbca")
    assert names_of(read_inputs(str(tmp_path), limit=3)) == ["a", "b", "c"]
    assert names_of(read_inputs(str(tmp_path), limit=30)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("bucket", ["photos--usw2-az1--x-s3", "arn:aws:s3express:us-west-2:1:accesspoint/photos--usw2-az1--xa-s3"])
def test_a_limit_takes_the_first_ones_of_a_bucket_without_order(monkeypatch, bucket):
    monkeypatch.setattr(storage, "list_sizes", lambda uri: ((f"{uri}/{name}.jpg", 1) for name in "cab"))
    uri = f"s3://{bucket}"
    assert read_inputs(uri, limit=2)["uri"].to_pylist() == [f"{uri}/a.jpg", f"{uri}/b.jpg"]


def test_a_limit_ends_the_listing_of_a_bucket(monkeypatch):
    def list_sizes(uri):
        yield from ((f"s3://bucket/photos/{name}", 1) for name in ("a.jpg", "b.jpg", "out/parts/x", "z.jpg"))
        raise AssertionError("nothing more is wanted")

    monkeypatch.setattr(storage, "list_sizes", list_sizes)
    table = read_inputs("s3://bucket/photos", limit=3, without="s3://bucket/photos/out")
    assert table["uri"].to_pylist() == [f"s3://bucket/photos/{name}.jpg" for name in "abz"]


def test_a_sample_is_the_same_whatever_else_there_is(manifest):
    some = [f"s3://bucket/{index}.jpg" for index in range(0, 4000, 4)]
    more = [f"s3://bucket/{index}.jpg" for index in range(4000)]
    sampled = {len(uris): set(manifest("\n".join(uris), "txt", sample_fraction=0.25)["uri"].to_pylist()) for uris in (some, more)}
    assert sampled[1000] == sampled[4000] & set(some)
    # 4 standard deviations of a fair draw of a quarter: sqrt(1000 * 3 / 16) = 13.7.
    assert abs(len(sampled[1000]) - 250) < 55
    half = set(manifest("\n".join(more), "txt", sample_fraction=0.5)["uri"].to_pylist())
    assert sampled[4000] < half


def test_a_limit_counts_what_is_sampled(manifest):
    uris = [f"s3://bucket/{index:03d}" for index in range(200)]
    whole = manifest("\n".join(uris), "txt", sample_fraction=0.5)["uri"].to_pylist()
    assert manifest("\n".join(uris), "txt", sample_fraction=0.5, limit=7)["uri"].to_pylist() == whole[:7]


def test_a_fraction_that_leaves_nothing_is_refused(manifest):
    with pytest.raises(ValueError, match="--sample-fraction 1e-09 leaves none of the inputs of"):
        manifest("a.jpg\nb.jpg", "txt", sample_fraction=1e-9)


# Manifests


@pytest.mark.parametrize(
    ("uri", "is_one"), [("a/b.txt", True), ("s3://a/b.CSV", True), ("x.parquet", True), ("a/b", False), ("t.xt/", False)]
)
def test_a_manifest_is_known_by_its_name(uri, is_one):
    assert is_manifest(uri) is is_one


def test_a_text_manifest_has_a_uri_per_line(manifest):
    table = manifest("s3://b/2.jpg\n\n  s3://b/1 with space.jpg  \r\ns3://b/3.jpg", "txt")
    assert table.schema.equals(INPUT)
    assert table["uri"].to_pylist() == ["s3://b/1 with space.jpg", "s3://b/2.jpg", "s3://b/3.jpg"]
    assert table["size"].null_count == table["scale"].null_count == 3


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_csv_and_parquet_have_a_column_of_uris_and_others_do_not_matter(manifest, kind):
    rows = pa.table({"license": ["CC", None], "uri": ["s3://b/ü,2.jpg", "s3://b/1.jpg"], "x": [1, 2]})
    content = rows if kind == "parquet" else 'license,uri,x\nCC,"s3://b/ü,2.jpg",1\n,s3://b/1.jpg,2\n'
    table = manifest(content, kind)
    assert table["uri"].to_pylist() == ["s3://b/1.jpg", "s3://b/ü,2.jpg"]
    assert table["scale"].null_count == 2


def test_uris_that_look_like_numbers_stay_text(manifest, tmp_path):
    assert manifest("uri\n007\n1e3\n")["uri"].to_pylist() == [f"{tmp_path}/007", f"{tmp_path}/1e3"]


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_relative_names_lie_beside_the_manifest(folder, kind):
    uris = ["a.jpg", "deep/b c.jpg", "/abs/c.jpg", "s3://other/d.jpg"]
    content = {
        "txt": "\n".join(uris).encode(),
        "csv": ("uri\n" + "\n".join(uris)).encode(),
        "parquet": storage.to_parquet(pa.table({"uri": uris})),
    }[kind]
    storage.write_bytes(storage.join_uri(folder, f"list.{kind}"), content)
    found = read_inputs(storage.join_uri(folder, f"list.{kind}"))["uri"].to_pylist()
    assert found == sorted([f"{folder}/a.jpg", f"{folder}/deep/b c.jpg", "/abs/c.jpg", "s3://other/d.jpg"])


def test_several_rows_of_a_picture_keep_their_order_and_are_told_apart(manifest):
    table = manifest("uri,center_x,center_y,scale\nb,3,0,1\na,9,0,1\nb,1,0,1\nc,0,0,1\nb,2,0,1\na,8,0,1\n")
    assert [name.rpartition("/")[2] for name in table["sample_id"].to_pylist()] == ["a#0", "a#1", "b#0", "b#1", "b#2", "c"]
    assert table["center_x"].to_pylist() == [9, 8, 3, 1, 2, 0]
    assert names_of(table) == ["a", "a", "b", "b", "b", "c"]


def test_lists_of_more_text_than_one_array_of_strings_holds_are_kept_in_several(manifest, monkeypatch):
    lines = "\n".join(f"s3://bucket/{name}.jpg" for name in "gaeccbdf")
    whole = manifest(lines, "txt")
    monkeypatch.setattr(inputs, "_LARGE_CHUNK", 3)
    cut = manifest(lines, "txt")
    assert [len(chunk) for chunk in cut["uri"].chunks] == [3, 3, 2]
    assert cut.equals(whole)
    assert cut.schema == inputs.INPUT


def test_spaces_after_the_commas_hide_no_people(manifest):
    [row] = manifest("uri, x1, y1, x2, y2\ns3://b/a.jpg, 10, 10, 110, 210.5\n", "csv").to_pylist()
    assert (row["person_from"], row["center_x"]) == ("box", 60)


def test_spaces_around_the_commas_are_no_part_of_a_uri(manifest):
    assert manifest("id, uri , note\n1, s3://b/a.jpg , 10\n2, s3://b/b.jpg, 10\n")["uri"].to_pylist() == ["s3://b/a.jpg", "s3://b/b.jpg"]
    # A name that looks like a number is a name.
    [uri] = manifest("id, uri\n1, 0012\n")["uri"].to_pylist()
    assert uri.endswith("/0012")


def test_a_byte_order_mark_is_no_part_of_a_uri(manifest):
    assert manifest("\ufeffs3://b/1.jpg\ns3://b/2.jpg", "txt")["uri"].to_pylist() == ["s3://b/1.jpg", "s3://b/2.jpg"]


def test_ids_are_unique_whatever_pictures_are_called(manifest):
    ids = manifest("/a\n/a\n/a#0\n/a#1", "txt")["sample_id"].to_pylist()
    assert len(set(ids)) == 4


# People


def test_a_centre_and_scale_are_taken_as_they_are(manifest):
    row = manifest("uri,center_x,center_y,scale\na,100.5,-20,0.75\n").to_pylist()[0]
    assert (row["center_x"], row["center_y"], row["scale"], row["person_from"]) == (100.5, -20.0, 0.75, "center")


@pytest.mark.parametrize(("box", "side"), [((100, 50, 180, 250), 200), ((10, 20, 310, 60), 300), ((5.5, 5.5, 45.5, 45.5), 40)])
def test_a_boxs_frame_lies_around_its_middle_with_a_quarter_of_its_longer_side_as_margin(manifest, box, side):
    row = manifest("uri,x1,y1,x2,y2\na,{},{},{},{}\n".format(*box)).to_pylist()[0]
    assert row["person_from"] == "box"
    assert row["scale"] == pytest.approx(side / 200)
    middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    # MPII's square lies 15 scales below its centre.
    assert (row["center_x"], row["center_y"]) == pytest.approx((middle[0], middle[1] - 15 * side / 200))
    frame = frame_person((row["center_x"], row["center_y"]), row["scale"], (64, 64))
    square = points_to_box(transform(frame, [(-0.5, -0.5), (63.5, 63.5)]))
    np.testing.assert_allclose(square, [*(middle - 0.625 * side), *(middle + 0.625 * side)])


@pytest.mark.parametrize("text", ["x1,y1,x2,y2\na,0.1,0.2,0.4,1\nb,0,0,1,1\nc,,,,", "center_x,center_y,scale\na,0.5,0.4,1.2"])
def test_people_in_shares_of_the_picture_are_refused(manifest, text):
    with pytest.raises(ValueError, match="lie between 0 and 1; they are px of the picture"):
        manifest(f"uri,{text}\n")


@pytest.mark.parametrize("text", ["x1,y1,x2,y2\na,0,0,1,1\nb,0,0,90,120", "center_x,center_y,scale\na,0.5,0.4,1.2\nb,-3,4,1"])
def test_a_person_in_the_picture_s_first_pixel_is_one_beside_others(manifest, text):
    assert manifest(f"uri,{text}\n")["scale"].null_count == 0


def test_a_centre_goes_before_a_box_and_rows_may_have_either_or_none(manifest):
    table = manifest("uri,center_x,center_y,scale,x1,y1,x2,y2\na,1,2,3,0,0,100,100\nb,,,,0,0,100,100\nc,1,2,3,,,,\nd,,,,,,,\n")
    assert table["person_from"].to_pylist() == ["center", "box", "center", None]
    assert table["scale"].to_pylist() == [3, 0.5, 3, None]
    assert table["center_x"].to_pylist() == [1, 50, 1, None]


def test_nan_of_a_parquet_file_is_none(manifest):
    nan = float("nan")
    table = manifest(pa.table({"uri": ["a", "b"], "x1": [nan, 0], "y1": [nan, 0], "x2": [nan, 40.0], "y2": [nan, 100.0]}), "parquet")
    assert table["person_from"].to_pylist() == [None, "box"]
    assert table["scale"].to_pylist() == [None, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "uri,center_x,center_y,scale\na,1,2,\nb,1,2,3\nc,,2,\n",
            "2 rows with a part of center_x, center_y, scale; give all of them or none",
        ),
        ("uri,x1,y1,x2\na,1,2,3\n", "1 rows with a part of x1, y1, x2, y2"),
        ("uri,center_x,center_y,scale\na,1,2,3\nb,1,2,0\nc,1,2,-1\n", r"2 people without a size .*, the first one in .*/b"),
        ("uri,x1,y1,x2,y2\na,10,10,10,10\n", r"1 people without a size .*x2 > x1 or y2 > y1"),
        ("uri,center_x,center_y,scale\na,left,2,3\n", "has values of the wrong kind: .*left"),
        ("url\na\n", "needs a column uri, it has url"),
        ("uri,x\na,1\n,2\n", "has rows without a URI"),
        ("", "is no manifest: Empty CSV file"),
        ("uri\n", "no inputs: no rows in"),
        (b"uri\n\xff\xfe\n", "is no manifest: .*UTF8"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_with_what_is_wrong(manifest, content, message):
    with pytest.raises(ValueError, match=message):
        manifest(content)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("", "txt", "no inputs: no rows in"),
        (" \n\n", "txt", "no inputs: no rows in"),
        (b"caf\xe9.jpg", "txt", "is no manifest: 'utf-8' codec can't decode"),
        (b"not Parquet", "parquet", "is no manifest: "),
        (pa.table({"url": ["a"]}), "parquet", "needs a column uri"),
        (pa.table({"uri": ["a", None]}), "parquet", "has rows without a URI"),
        (pa.table({"uri": pa.array([], pa.string())}), "parquet", "no inputs: no rows in"),
    ],
)
def test_other_manifests_that_make_no_sense_are_refused(manifest, content, kind, message):
    with pytest.raises(ValueError, match=message):
        manifest(content, kind)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_folder_in_place_of_a_manifest_is_refused(folder, kind):
    """Spark writes a folder of this name."""
    write(folder, f"people.{kind}/part-00000-0123-c000.snappy.{kind}", f"people.{kind}/_SUCCESS")
    with pytest.raises(ValueError, match=rf"{folder}/people\.{kind} is a folder, and a manifest is one file: name the file in it"):
        read_inputs(storage.join_uri(folder, f"people.{kind}"))


def test_an_empty_folder_in_place_of_a_manifest_is_refused(tmp_path):
    (tmp_path / "people.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read_inputs(str(tmp_path / "people.csv"))
    (tmp_path / "file.csv").touch()
    with pytest.raises(ValueError, match="no manifest at"):
        read_inputs(str(tmp_path / "file.csv" / "people.csv"))


def test_a_manifest_that_is_not_there_is_refused(folder):
    with pytest.raises(ValueError, match=r"no manifest at .*list\.csv"):
        read_inputs(storage.join_uri(folder, "list.csv"))


# Shards


def test_shards_come_back_over_the_borders_of_files(folder, manifest, monkeypatch):
    monkeypatch.setattr(inputs, "SHARDS_PER_FILE", 2)
    table = manifest(
        "uri,center_x,center_y,scale\n" + "".join(f"{index:02d},{index},0,1\n" if index % 3 else f"{index:02d},,,\n" for index in range(17))
    )
    files = write_inputs(folder, table, 3)
    # 17 inputs are 6 shards of 3, the last of 2; two shards a file.
    hashes = [storage.sha256(storage.read_bytes(storage.join_uri(folder, file))) for file in files]
    assert files == [f"inputs/part-0000{index}-{sha256[:12]}.parquet" for index, sha256 in enumerate(hashes)]
    assert [storage.read_table(storage.join_uri(folder, file)).num_rows for file in files] == [6, 6, 5]
    shards = [read_shard(folder, files, shard) for shard in range(6)]
    assert [len(shard) for shard in shards] == [3] * 5 + [2]
    assert [row for shard in shards for row in shard] == table.to_pylist()


def test_the_fingerprint_is_of_the_values_and_not_of_their_chunks(manifest):
    table = manifest("uri,center_x,center_y,scale\na,1,2,3\nb,,,\n", "csv")
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert inputs.fingerprint(pieces) == inputs.fingerprint(table)
    others = [
        manifest("uri,center_x,center_y,scale\na,1,2,4\nb,,,\n", "csv"),
        manifest("uri,center_x,center_y,scale\na,1,2,3\nc,,,\n", "csv"),
        table.slice(0, 1),
    ]
    assert len({inputs.fingerprint(other) for other in [table, *others]}) == 4


def test_the_same_list_gives_the_same_bytes(tmp_path, manifest):
    table = manifest("c\nb\na\n", "txt")
    first, second = (write_inputs(str(tmp_path / name), table, 2) for name in ("one", "two"))
    assert first == second
