"""planning.py: which models go together, what a run is of, what is refused, and what a folder's own plan is good for."""

import pyarrow as pa
import pytest
from test_scoring import write_checkpoint

from posepipe import capacity, images, inputs, journal, planning, samples, scoring, storage
from posepipe.config import ScoreConfig
from posepipe.model_file import Checkpoint
from posepipe.planning import Plan, dry_run, load_checkpoints, plan_run, require_cluster, store_plan


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints by what they are."""
    folder = tmp_path_factory.mktemp("checkpoints")
    small = {"model": "test_resnet", "regression_head": "direct", "feature_stride": 32}
    kinds = {
        "pose": {},
        "other pose": {"mean_points": [[0.4, 0.4]] * 16},
        "large pose": {"size": (96, 96)},
        "head": {"task": "head", "size": (48, 48)},
        "image pose": {"framing": "image", "size": (96, 96)},
        "image head": {"framing": "image", "task": "head"},
    }
    return {name: write_checkpoint(folder / name.replace(" ", "-"), **small, **changes) for name, changes in kinds.items()}


@pytest.fixture
def pictures(tmp_path):
    """A prefix of seven files of 1 to 7 bytes."""
    for index in range(7):
        storage.write_bytes(str(tmp_path / "pictures" / f"{index}.jpg"), b"x" * (index + 1))
    return str(tmp_path / "pictures")


def people(tmp_path, content="uri,center_x,center_y,scale\na.jpg,1,2,3\nb.jpg,,,\n", name="people.csv"):
    (tmp_path / name).write_text(content)
    return str(tmp_path / name)


def config(*checkpoint_uris, **values):
    values = {"predictions_uri": "unused", **values}
    return ScoreConfig(checkpoint_uri=checkpoint_uris, **values)


def plan(given, run=None, run_uri="", first_stage=None):
    models, first_stage = load_checkpoints(given)
    return plan_run(given, models, first_stage, run, run_uri)


def stored(given, run_uri):
    """A folder that holds the plan of `given`; returns what it says it is of."""
    store_plan(given, plan(given), run_uri)
    return journal.read_run(run_uri)


# Models


def test_a_model_comes_with_what_the_plan_needs_of_it(checkpoints):
    [model], first_stage = load_checkpoints(config(checkpoints["head"], images_uri="x"))
    data = storage.read_bytes(storage.join_uri(checkpoints["head"], "model.safetensors"))
    assert (model.uri, model.model_id) == (checkpoints["head"], storage.sha256(data))
    assert (model.task, model.framing, model.size, first_stage) == ("head", "person", (48, 48), None)


def test_a_pose_and_a_head_model_go_together_and_each_has_its_size(checkpoints, tmp_path):
    given = config(checkpoints["pose"], checkpoints["head"], images_uri=people(tmp_path))
    models, _ = load_checkpoints(given)
    assert [model.task for model in models] == ["head", "pose"]
    assert plan(given).sizes == ((48, 48), (64, 64))
    assert plan(given).identity["models"] == {model.task: model.model_id for model in models}


def test_several_models_of_a_task_are_an_ensemble_whatever_their_order(checkpoints, tmp_path):
    manifest = people(tmp_path)
    names = ("pose", "head", "large pose", "other pose")
    given = config(*(checkpoints[name] for name in names), images_uri=manifest)
    ids = {name: load_checkpoints(config(checkpoints[name], images_uri=manifest))[0][0].model_id for name in names}
    found = plan(given)
    assert found.identity["models"] == {"head": ids["head"], "pose": ",".join(sorted(ids[name] for name in names if name != "head"))}
    assert found.sizes == ((48, 48), (64, 64), (96, 96))
    other = plan(config(*(checkpoints[name] for name in reversed(names)), images_uri=manifest))
    assert (other.models, other.identity) == (found.models, found.identity)
    run = stored(given, str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"models was {'head': .*,.*'}, now {'pose': '[0-9a-f]{64}'}"):
        plan(config(checkpoints["pose"], images_uri=manifest), run)


@pytest.mark.parametrize(
    ("names", "first_stage", "message"),
    [
        (("pose", "other pose", "pose"), "", "--checkpoint-uri names one model twice: .*/pose and .*/pose"),
        (("pose", "image pose"), "", "one pass takes checkpoints of the same framing, got pose: person and pose: image"),
        (("pose", "image head"), "", "one pass takes checkpoints of the same framing, got pose: person and head: image"),
        (("pose",), "head", "--first-stage-uri takes a checkpoint trained on image framing, .*head has person"),
        (
            ("image pose",),
            "image head",
            "--first-stage-uri frames people for a checkpoint trained on person framing; this one sees whole pictures",
        ),
    ],
)
def test_models_that_do_not_go_together_are_refused(checkpoints, names, first_stage, message):
    given = config(*(checkpoints[name] for name in names), images_uri="x", first_stage_uri=checkpoints.get(first_stage, ""))
    with pytest.raises(ValueError, match=message):
        load_checkpoints(given)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_checkpoints(config(str(tmp_path), images_uri="x"))


# People


def test_a_model_of_people_needs_people(checkpoints, pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "read_inputs", lambda *_, **__: pytest.fail("a prefix was listed that has no people"))
        with pytest.raises(ValueError, match="needs to know where the person is: give --first-stage-uri, a manifest"):
            plan(config(checkpoints["pose"], images_uri=pictures))
    nobody = people(tmp_path, "uri,center_x,center_y,scale\na.jpg,,,\n", "nobody.csv")
    with pytest.raises(ValueError, match="needs to know where the person is"):
        plan(config(checkpoints["pose"], images_uri=nobody))
    assert plan(config(checkpoints["pose"], images_uri=people(tmp_path))).num_inputs == 2
    assert plan(config(checkpoints["pose"], images_uri=pictures, first_stage_uri=checkpoints["image head"])).num_inputs == 7
    assert plan(config(checkpoints["image pose"], images_uri=nobody)).num_inputs == 1


# Shards


@pytest.mark.parametrize(("shard_size", "counts"), [(3, [3, 3, 1]), (7, [7]), (100, [7]), (1, [1] * 7)])
def test_inputs_are_cut_into_shards(checkpoints, pictures, shard_size, counts):
    found = plan(config(checkpoints["image pose"], images_uri=pictures, shard_size=shard_size))
    assert (found.counts, found.num_inputs, len(found.specs)) == (counts, 7, len(counts))
    assert found.num_bytes == 1 + 2 + 3 + 4 + 5 + 6 + 7


def test_a_limit_and_a_fraction_are_of_the_inputs(checkpoints, pictures):
    found = plan(config(checkpoints["image pose"], images_uri=pictures, shard_size=2, limit=5))
    assert (found.counts, found.num_bytes) == ([2, 2, 1], 15)
    with pytest.raises(ValueError, match="leaves none"):
        plan(config(checkpoints["image pose"], images_uri=pictures, sample_fraction=1e-9))


def test_the_bytes_of_a_manifest_are_not_known(checkpoints, tmp_path):
    assert plan(config(checkpoints["pose"], images_uri=people(tmp_path))).num_bytes is None


def test_results_inside_the_prefix_are_left_out(checkpoints, pictures):
    run_uri = storage.join_uri(pictures, "out")
    storage.write_bytes(storage.join_uri(run_uri, "writers", "000001.json"), b"{}")
    given = config(checkpoints["image pose"], images_uri=pictures)
    assert plan(given, run_uri=run_uri).num_inputs == 7


# What a run is of


def test_the_same_settings_are_the_same_run(checkpoints, pictures, tmp_path):
    for given in (config(checkpoints["image pose"], images_uri=pictures + "/"), config(checkpoints["pose"], images_uri=people(tmp_path))):
        assert plan(given).identity == plan(given).identity
        run = stored(given, str(tmp_path / f"run {given.images_uri[-4:]}"))
        assert plan(given, run).identity == run["identity"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_id": "b"}, "run_id was 'score', now 'b'"),
        ({"shard_size": 3}, "shard_size was 2, now 3"),
        ({"limit": 5}, "limit was 0, now 5"),
        ({"sample_fraction": 0.5}, "sample_fraction was 1.0, now 0.5"),
        ({"max_bytes": 10}, "max_bytes was 134217728, now 10"),
        ({"max_pixels": 10}, "max_pixels was 89478485, now 10"),
        ({"flip_test": True}, "flip_test was False, now True"),
        ({"test_scales": (1.0, 0.9)}, r"test_scales was \[1.0\], now \[0.9, 1.0\]"),
        ({"precision": "bfloat16"}, "precision was 'float32', now 'bfloat16'"),
    ],
)
def test_other_settings_are_another_run(checkpoints, pictures, tmp_path, changes, said):
    run = stored(config(checkpoints["image pose"], images_uri=pictures, shard_size=2), str(tmp_path / "run"))
    values = {"shard_size": 2, **changes}
    with pytest.raises(ValueError, match=f"holds other predictions .*{said}"):
        plan(config(checkpoints["image pose"], images_uri=pictures, **values), run, str(tmp_path / "run"))


def test_a_run_of_other_pixels_is_not_gone_on_with(checkpoints, pictures, sample_files, tmp_path, monkeypatch):
    given = config(checkpoints["image pose"], images_uri=pictures)
    run = stored(given, str(tmp_path / "run"))
    older = {**run, "identity": {name: value for name, value in run["identity"].items() if name != "pixels"}}
    with pytest.raises(ValueError, match=f"pixels was 1, now {images.PIXELS}"):
        plan(given, older)
    monkeypatch.setattr(images, "PIXELS", images.PIXELS + 1)
    with pytest.raises(ValueError, match=f"pixels was {images.PIXELS - 1}, now {images.PIXELS}"):
        plan(given, run)
    # The crops of samples are cut already.
    assert "pixels" not in plan(config(checkpoints["pose"], samples_uri=sample_files)).identity


def test_what_is_not_averaged_any_more_is_another_run(checkpoints, sample_files, pictures, tmp_path):
    values = {"flip_test": True, "test_scales": (0.9, 1.0)}
    said = r"flip_test was True, now False; test_scales was \[0.9, 1.0\], now \[1.0\]"
    for name, inputs_of in (("image pose", {"images_uri": pictures}), ("pose", {"samples_uri": sample_files})):
        run = stored(config(checkpoints[name], **inputs_of, **values), str(tmp_path / f"run of {name}"))
        assert {key: run["identity"][key] for key in values} == {"flip_test": True, "test_scales": [0.9, 1.0]}
        assert plan(config(checkpoints[name], **inputs_of, **{**values, "test_scales": (1.0, 0.9)}), run).identity == run["identity"]
        with pytest.raises(ValueError, match=said):
            plan(config(checkpoints[name], **inputs_of), run)


def test_a_run_that_averages_nothing_is_named_as_ever(checkpoints, pictures):
    identity = plan(config(checkpoints["image pose"], images_uri=pictures, test_scales=(1.0,))).identity
    assert not {"flip_test", "test_scales", "precision"} & set(identity)


def test_what_does_not_change_the_rows_is_the_same_run(checkpoints, pictures, tmp_path):
    run = stored(config(checkpoints["image pose"], images_uri=pictures), str(tmp_path / "run"))
    given = config(
        checkpoints["image pose"], images_uri=pictures, num_actors=2, batch_size=3, takeover_after=5, price_per_hour=1, num_overlays=2
    )
    assert plan(given, run).identity == run["identity"]


def test_another_model_is_refused_with_both_hashes(checkpoints, tmp_path):
    manifest = people(tmp_path)
    run = stored(config(checkpoints["pose"], images_uri=manifest), str(tmp_path / "run"))
    hashes = [load_checkpoints(config(checkpoints[name], images_uri="x"))[0][0].model_id for name in ("pose", "other pose")]
    with pytest.raises(ValueError, match=f"models was {{'pose': '{hashes[0]}'}}, now {{'pose': '{hashes[1]}'}}"):
        plan(config(checkpoints["other pose"], images_uri=manifest), run)


def test_another_first_stage_is_refused_with_both_hashes(checkpoints, pictures, tmp_path):
    values = {"images_uri": pictures, "first_stage_uri": checkpoints["image head"]}
    run = stored(config(checkpoints["pose"], **values), str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"first_stage was '[0-9a-f]{64}', now '[0-9a-f]{64}'"):
        plan(config(checkpoints["pose"], **{**values, "first_stage_uri": checkpoints["image pose"]}), run)


def test_a_manifest_that_changed_is_refused_with_both_hashes(checkpoints, tmp_path):
    given = config(checkpoints["pose"], images_uri=people(tmp_path))
    run = stored(given, str(tmp_path / "run"))
    people(tmp_path, "uri,center_x,center_y,scale\na.jpg,1,2,3\nb.jpg,1,1,1\n")
    with pytest.raises(ValueError, match=r"inputs was {'sha256': '[0-9a-f]{64}'}, now {'sha256': '[0-9a-f]{64}'}\)"):
        plan(given, run)


def test_a_prefix_stands_for_what_was_listed_at_first(checkpoints, pictures, tmp_path, monkeypatch):
    given = config(checkpoints["image pose"], images_uri=pictures, shard_size=3)
    run = stored(given, str(tmp_path / "run"))
    storage.write_bytes(storage.join_uri(pictures, "new.jpg"), b"x")
    monkeypatch.setattr(inputs, "read_inputs", lambda *_, **__: pytest.fail("listed again"))
    found = plan(given, run)
    assert (found.counts, found.num_bytes, found.identity, found.table) == ([3, 3, 1], 28, run["identity"], None)


def test_the_plan_is_stored_with_its_list_and_then_its_name(checkpoints, pictures, tmp_path, monkeypatch):
    order = []
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: order.append(uri.rpartition("/run/")[2]) or write(uri, data))
    create = storage.create_bytes
    monkeypatch.setattr(storage, "create_bytes", lambda uri, data: order.append(uri.rpartition("/run/")[2]) or create(uri, data))
    run = stored(config(checkpoints["image pose"], images_uri=pictures, shard_size=3), str(tmp_path / "run"))
    assert order == [*run["files"], "_RUN.json"]
    assert (run["num_inputs"], run["num_bytes"], len(run["files"])) == (7, 28, 1)
    uris = [row["uri"] for shard in range(3) for row in inputs.read_shard(str(tmp_path / "run"), run["files"], shard)]
    assert uris == [f"{pictures}/{index}.jpg" for index in range(7)]


# Samples


@pytest.fixture
def sample_files(tmp_path):
    """The outer form of samples: two files of the val split, one of train, two people without a picture."""
    uri = str(tmp_path / "samples")
    files = [
        {"file": f"{split}/part-{number:05d}.parquet", "split": split, "rows": rows}
        for split, number, rows in (("train", 0, 9), ("val", 1, 5), ("val", 3, 4))
    ]
    failed = [
        {"image": f"{split}.jpg", "person_index": 0, "split": split, "status": "missing", "detail": ""} for split in ("train", "val", "val")
    ]
    storage.write_table(storage.join_uri(uri, samples.ERRORS_FILE), pa.Table.from_pylist(failed, samples.ERROR))
    manifest = {"framing": "person", "size": [64, 64], "images_uri": "s3://b/images", "files": files, "rows": {"train": 9, "val": 9}}
    storage.write_json(storage.join_uri(uri, storage.MANIFEST), manifest)
    return uri


def test_samples_are_a_shard_per_file_and_one_for_people_without_a_picture(checkpoints, sample_files):
    found = plan(config(checkpoints["pose"], samples_uri=sample_files))
    assert found.counts == [5, 4, 2]
    assert [spec["samples"].rpartition("/")[2] for spec in found.specs[:2]] == ["part-00001.parquet", "part-00003.parquet"]
    assert [row["image"] for row in found.specs[2]["failed"]] == ["val.jpg"] * 2
    assert found.identity["inputs"]["split"] == "val"
    assert plan(config(checkpoints["pose"], samples_uri=sample_files, split="train")).counts == [9, 1]


def test_samples_of_another_size_or_framing_are_refused(checkpoints, sample_files):
    with pytest.raises(ValueError, match=r"trained on samples of size 48 x 48, .* has size 64 x 64"):
        plan(config(checkpoints["head"], samples_uri=sample_files))
    with pytest.raises(
        ValueError, match=r"trained on samples of size 96 x 96, .* has size 64 x 64|of framing image, .* has framing person"
    ):
        plan(config(checkpoints["image pose"], samples_uri=sample_files))


def test_pictures_after_samples_are_another_run(checkpoints, sample_files, pictures, tmp_path):
    run = stored(config(checkpoints["pose"], samples_uri=sample_files), str(tmp_path / "run"))
    assert plan(config(checkpoints["pose"], samples_uri=sample_files), run).identity == run["identity"]
    with pytest.raises(ValueError, match=r"inputs was .*samples_fingerprint"):
        plan(config(checkpoints["pose"], images_uri=people(tmp_path)), run)
    with pytest.raises(ValueError, match=r"inputs was .*'split': 'val'.*, now .*'split': 'train'"):
        plan(config(checkpoints["pose"], samples_uri=sample_files, split="train"), run)


# The cluster


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes of four CPUs, one with a GPU."""
    groups = [capacity._Group(1, {"CPU": 4.0}), capacity._Group(1, {"CPU": 4.0, "GPU": 1.0})]
    monkeypatch.setattr(capacity, "_nodes", lambda: (groups, 0.0))
    monkeypatch.setattr(capacity, "smallest_object_store", lambda *_: 3 * 2**29)


@pytest.mark.parametrize(
    ("values", "has_first_stage", "fits"),
    [
        ({"num_actors": 8}, False, True),
        ({"num_actors": 9}, False, False),
        ({"num_actors": 2, "cpus_per_actor": 4}, False, True),
        ({"num_actors": 3, "cpus_per_actor": 3}, False, False),
        ({"num_actors": 1, "cpus_per_actor": 4}, False, True),
        ({"num_actors": 1, "cpus_per_actor": 5}, False, False),
        ({}, False, True),
        ({"cpus_per_actor": 5}, False, False),
        ({"use_gpu": True}, False, True),
        ({"use_gpu": True}, True, True),  # half a GPU each
        ({"use_gpu": True, "num_actors": 2}, False, False),
        ({"num_actors": 8}, True, True),  # half a CPU each
        ({"num_actors": 9}, True, False),
    ],
)
def test_a_cluster_holds_the_actors_and_a_task_that_reads(nodes, values, has_first_stage, fits):
    given = config("a", images_uri="x", **values)
    if fits:
        require_cluster(given, has_first_stage or None)
    else:
        with pytest.raises(ValueError, match=r"scoring with \d actors .*needs .* the cluster has 8 CPUs and 1 GPUs.*; change --num-actors"):
            require_cluster(given, has_first_stage or None)


@pytest.mark.parametrize(
    ("values", "num_shards", "expected"),
    [
        ({}, 1000, 4),
        ({"cpus_per_actor": 1}, 1000, 8),
        ({}, 13, 3),  # the fourth would have too little to do
        ({}, 1, 1),
        ({"cpus_per_actor": 3}, 1000, 2),
        ({"use_gpu": True}, 1000, 1),
        ({"num_actors": 5}, 1000, 5),
        ({"num_actors": 5}, 1, 5),
    ],
)
def test_there_are_as_many_actors_as_the_cluster_holds_and_the_shards_are_worth(nodes, values, num_shards, expected):
    assert planning.choose_num_actors(config("a", images_uri="x", **values), num_shards) == expected


@pytest.mark.parametrize(
    ("values", "cpus", "expected"),
    [
        ({}, (4.0, 16.0), 2),
        ({}, (4.0, 3.0), 1),  # a CPU of the second node would have nothing to do
        ({}, (1.0,), 1),
        ({"num_actors": 2}, (4.0,), 1),
        ({"use_gpu": True}, (4.0,), 1),
        ({"num_actors": 2, "cpus_per_actor": 3}, (4.0,), 3),
        ({"use_gpu": True, "cpus_per_actor": 3}, (4.0,), 3),
    ],
)
def test_two_cpus_share_the_libraries_of_an_actor_if_none_is_left_over(monkeypatch, values, cpus, expected):
    monkeypatch.setattr(capacity, "_nodes", lambda: ([capacity._Group(1, {"CPU": count, "GPU": 1.0}) for count in cpus], 0.0))
    assert planning.choose_cpus_per_actor(config("a", images_uri="x", **values)) == expected


def test_actors_with_gpus_leave_a_cpu_to_read(monkeypatch):
    monkeypatch.setattr(capacity, "_nodes", lambda: ([capacity._Group(2, {"CPU": 4.0, "GPU": 4.0})], 0.0))
    given = config("a", images_uri="x", use_gpu=True)
    num_actors = planning.choose_num_actors(given, 1000)
    assert num_actors == 7
    require_cluster(config("a", images_uri="x", use_gpu=True, num_actors=num_actors), None)


@pytest.mark.parametrize(
    ("values", "sizes", "expected"),
    [
        ({}, [(128, 128)], 32),
        ({"use_gpu": True}, [(128, 128)], 256),
        ({"use_gpu": True}, [(64, 64)], 256),
        ({"use_gpu": True}, [(192, 256)], 85),
        ({"use_gpu": True}, [(384, 384)], 64),
        ({"use_gpu": True}, [(128, 128), (256, 256)], 64),
        ({"use_gpu": True, "batch_size": 7}, [(128, 128)], 7),
    ],
)
def test_a_batch_is_what_was_asked_for_or_what_suits_the_device_and_the_crops(values, sizes, expected):
    assert planning.choose_batch_size(config("a", images_uri="x", **values), sizes) == expected


def test_beside_gpus_more_shards_are_read_at_a_time_than_there_are_cores(monkeypatch):
    """Each core would wait a while for its next shard; and for what is read there is room in the object store."""
    monkeypatch.setattr(capacity, "_nodes", lambda: ([capacity._Group(1, {"CPU": 16.0, "GPU": 1.0})], 0.0))
    given = config("a", images_uri="x", use_gpu=True)
    cpus, _ = planning.actor_share(given, None)
    num_readers = int((16 - cpus) / planning.reader_cpus(given))
    assert num_readers > 16 - cpus
    # Ray Data counts three eighths of its limit for results of tasks that run, and one for those that wait or lie with the actors.
    limit = scoring.store_limit(given, 1, shard_bytes=1)
    assert limit * 3 / 8 >= num_readers + scoring.SHARDS_IN_FLIGHT_PER_GPU
    assert limit / 8 >= scoring.SHARDS_IN_FLIGHT_PER_GPU


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_without_a_gpu_an_actor_and_a_reader_for_each_of_its_cores_take_what_it_is_given(stages, cpus):
    share, gpus = planning.actor_share(config("a", images_uri="x", cpus_per_actor=cpus), "a first stage" if stages == 2 else None)
    assert (stages * share + cpus * planning.READER_CPUS, gpus) == (pytest.approx(cpus), 0)
    # Ray would fuse a reader and an actor that take the same.
    assert share != planning.READER_CPUS


def test_a_dry_run_says_what_there_is_to_do_and_what_the_cluster_offers(checkpoints, pictures, tmp_path, nodes):
    values = {
        "images_uri": pictures,
        "first_stage_uri": checkpoints["image head"],
        "shard_size": 3,
        "predictions_uri": str(tmp_path / "out"),
    }
    said = dry_run(config(checkpoints["pose"], **values, dry_run=True)).splitlines()
    assert said == [
        "inputs: 7 in 3 shards of up to 3, 0.00 GiB",
        f"pose model: person framing, 64 x 64 px, {checkpoints['pose']}",
        f"first stage: image framing, 64 x 64 px, {checkpoints['image head']}",
        "cluster: 2 nodes with 8 CPUs and 1 GPUs, the smallest object store 1.5 GiB",
        "fits: 1 actors of 2 CPUs each",
    ]
    assert not (tmp_path / "out").exists()
    said = dry_run(config(checkpoints["pose"], **values, dry_run=True, flip_test=True, test_scales=(1.0, 1.1))).splitlines()
    assert said[3] == "each crop goes through each model 4 times"
    said = dry_run(config(checkpoints["image pose"], **(values | {"first_stage_uri": ""}), num_actors=9, dry_run=True)).splitlines()
    assert said[-1].startswith("does not fit: scoring with 9 actors needs 9 CPUs")


def test_a_dry_run_of_a_manifest_knows_no_size(checkpoints, tmp_path, nodes):
    given = config(checkpoints["pose"], images_uri=people(tmp_path), predictions_uri="", dry_run=True)
    assert dry_run(given).startswith("inputs: 2 in 1 shards of up to 2, unknown size\n")


def test_a_plans_sizes_are_each_once():
    model = Checkpoint("a", "1", "pose", "person", (64, 64))
    other = Checkpoint("b", "2", "head", "person", (64, 64))
    assert Plan({}, [model, other], None, [{}], [3, 4]).sizes == ((64, 64),)
    assert Plan({}, [model], None, [{}, {}], [3, 4]).num_inputs == 7
