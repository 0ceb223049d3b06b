"""What a scoring run has to do, before it starts: models that go together, inputs cut into shards, a cluster that holds it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from posepipe import capacity, images, inputs, journal, samples, storage
from posepipe.config import ScoreConfig
from posepipe.model_file import Checkpoint, join_ids, read_checkpoint

# Reading waits for the storage half of the time, and where the model is quick all cores should decode. It is not what is left of a CPU for
# an actor, nor half of that: Ray would fuse the two and read no shard beside the actor.
READER_CPUS = 0.4
# No actor shares the cores then. Ray Data looks for ended tasks ten times a second: two readers per core keep it busy meanwhile, and each
# further one is a process to start and to keep.
READER_CPUS_BESIDE_GPU = 0.5
# There an actor's one core has to launch all that the GPU computes, while more decoders than cores want to run. (Ray's workers are at 15
# where RAY_worker_niceness says nothing else: then 4 more is all that there is.)
READER_NICENESS_BESIDE_GPU = 10
BATCH_ON_CPU = 32
# A GPU is through with a batch of small crops before its next kernel has been launched.
BATCH_ON_GPU, LARGEST_ON_GPU, PIXELS_ON_GPU = 64, 256, 2**22
CPUS_PER_ACTOR = 2  # Most of an actor's memory are libraries, which its cores share.
SHARDS_PER_ACTOR = 4  # for so many it pays to start one
# Of runs from before there was another value.
_DEFAULTS: dict[str, Any] = {"flip_test": False, "test_scales": [1.0], "precision": "float32", "pixels": 1}
_NO_PEOPLE = (
    "the checkpoint was trained on person framing, which needs to know where the person is: give --first-stage-uri, "
    "a manifest with center_x, center_y and scale or a box per row, or a checkpoint that was trained on image framing"
)


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        identity: all that decides what the rows are; a folder holds one of these.
        models: by task and id, whatever the command line's order; several of a task are an ensemble.
        first_stage: that frames people for them, or None.
        specs: of each shard, what ShardReader needs beside the stored inputs.
        counts: inputs of each shard.
        num_bytes: of the pictures, None where not known.
        files: of the stored inputs, below the run's folder; none before they are stored, and none of samples.
        table: the INPUT rows, where they had to be read.
    """

    identity: dict[str, Any]
    models: list[Checkpoint]
    first_stage: Checkpoint | None
    specs: list[dict[str, Any]]
    counts: list[int]
    num_bytes: int | None = None
    files: list[str] = dataclasses.field(default_factory=list)
    table: pa.Table | None = None

    @property
    def num_inputs(self) -> int:
        return sum(self.counts)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted({model.size for model in self.models}))


def load_checkpoints(config: ScoreConfig) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The models and the first stage; ValueError where they do not go together."""
    models = [read_checkpoint(uri) for uri in config.checkpoint_uri]
    for place, model in enumerate(models):
        for other in models[:place]:
            if other.model_id == model.model_id:
                raise ValueError(f"--checkpoint-uri names one model twice: {other.uri} and {model.uri}")
    if len({model.framing for model in models}) > 1:
        raise ValueError("one pass takes checkpoints of the same framing, got " + " and ".join(f"{m.task}: {m.framing}" for m in models))
    # Sums of floats depend on their order, and a run may go on with another command line.
    models.sort(key=lambda model: (model.task, model.model_id))
    if not config.first_stage_uri:
        return models, None
    first_stage = read_checkpoint(config.first_stage_uri)
    if first_stage.framing != "image":
        raise ValueError(f"--first-stage-uri takes a checkpoint trained on image framing, {first_stage.uri} has {first_stage.framing}")
    if models[0].framing == "image":
        raise ValueError("--first-stage-uri frames people for a checkpoint trained on person framing; this one sees whole pictures")
    return models, first_stage


def plan_run(
    config: ScoreConfig,
    models: list[Checkpoint],
    first_stage: Checkpoint | None,
    run: dict[str, Any] | None,
    run_uri: str,
) -> Plan:
    """The plan of this config; where the folder holds a run already, that run's plan, or ValueError where it is of something else."""
    identity: dict[str, Any] = {
        "models": join_ids(models),
        "first_stage": first_stage.model_id if first_stage else None,
        "run_id": config.run_id,
        **_predicting(config),
    }
    if config.samples_uri:
        specs, counts, inputs_id = _sample_shards(config, models)
        plan = Plan({**identity, "inputs": inputs_id}, models, None, specs, counts)
        if run:
            _require_same(run_uri, run, plan.identity)
        return plan
    images_uri = storage.resolve_uri(config.images_uri)
    names = ("shard_size", "limit", "sample_fraction", "max_bytes", "max_pixels")
    identity |= {"images_uri": images_uri, "pixels": images.PIXELS, **{name: getattr(config, name) for name in names}}
    needs_people = models[0].framing == "person" and not first_stage
    # A prefix has no people; it is not listed to find that out.
    if needs_people and not inputs.is_manifest(images_uri):
        raise ValueError(_NO_PEOPLE)
    # Another model is refused before anything is listed; for another place the hash of its list is part of the message.
    if run and run["identity"].get("images_uri") == images_uri:
        _require_same(run_uri, run, identity)
        if not inputs.is_manifest(images_uri):
            # A prefix stands for what was listed when the run began.
            counts = _cut(run["num_inputs"], config.shard_size)
            return Plan(run["identity"], models, first_stage, [{}] * len(counts), counts, run["num_bytes"], run["files"])
    table = inputs.read_inputs(images_uri, limit=config.limit, sample_fraction=config.sample_fraction, without=run_uri)
    if needs_people and table["scale"].null_count == table.num_rows:
        raise ValueError(_NO_PEOPLE)
    identity["inputs"] = {"sha256": inputs.fingerprint(table)}
    if run:
        _require_same(run_uri, run, identity)
    counts = _cut(table.num_rows, config.shard_size)
    num_bytes = None if table["size"].null_count else int(np.sum(table["size"].to_numpy()))
    return Plan(identity, models, first_stage, [{}] * len(counts), counts, num_bytes, run["files"] if run else [], table)


def require_apart(config: ScoreConfig, run_uri: str) -> None:
    """ValueError where pictures are to be listed in a folder that the run keeps for itself."""
    images_uri = storage.resolve_uri(config.images_uri) if config.images_uri else ""
    if images_uri and not inputs.is_manifest(images_uri):
        inputs.require_apart(images_uri, run_uri)


def _predicting(config: ScoreConfig) -> dict[str, Any]:
    """Of the identity, how the models predict; the defaults are left out, so that runs from before there were others go on."""
    values = {"flip_test": config.flip_test, "test_scales": sorted(config.test_scales), "precision": config.precision}
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


def _require_same(run_uri: str, run: dict[str, Any], wanted: dict[str, Any]) -> None:
    journal.require_same(run_uri, {**_DEFAULTS, **run["identity"]}, {**_DEFAULTS, **wanted})


def _cut(num_inputs: int, shard_size: int) -> list[int]:
    return [min(shard_size, num_inputs - start) for start in range(0, num_inputs, shard_size)]


def store_plan(config: ScoreConfig, plan: Plan, run_uri: str) -> Plan:
    """Writes the list of inputs and then what the run is of; returns the plan with the files of the list."""
    files = [] if plan.table is None else inputs.write_inputs(run_uri, plan.table, config.shard_size)
    run = {"identity": plan.identity, "num_inputs": plan.num_inputs, "num_bytes": plan.num_bytes, "files": files}
    journal.write_run(run_uri, run)
    return dataclasses.replace(plan, files=files, table=None)


def _sample_shards(config: ScoreConfig, models: list[Checkpoint]) -> tuple[list[dict[str, Any]], list[int], dict[str, Any]]:
    """One shard per file of the split, and one for the people whose picture could not be used when the samples were made."""
    samples_uri = storage.resolve_uri(config.samples_uri)
    manifest = samples.read_manifest(samples_uri)
    for model in models:
        expected = {"size": _text(model.size), "framing": model.framing}
        found = {"size": _text(samples.crop_size(manifest)), "framing": manifest["framing"]}
        for name in expected:
            if found[name] != expected[name]:
                raise ValueError(
                    f"the checkpoint was trained on samples of {name} {expected[name]}, {samples_uri} has {name} {found[name]}"
                )
    files = samples.list_split(samples_uri, config.split)
    rows = {storage.join_uri(samples_uri, item["file"]): item["rows"] for item in manifest["files"]}
    specs: list[dict[str, Any]] = [{"samples": uri, "images": manifest["images_uri"]} for uri in files]
    counts = [rows[uri] for uri in files]
    errors = storage.read_table(storage.join_uri(samples_uri, samples.ERRORS_FILE)).to_pylist()
    failed = [row for row in errors if row["split"] == config.split]
    if failed:
        specs.append({"failed": failed, "images": manifest["images_uri"]})
        counts.append(len(failed))
    return specs, counts, {"samples_fingerprint": samples.fingerprint(manifest), "split": config.split}


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def choose_batch_size(config: ScoreConfig, sizes: Sequence[tuple[int, int]]) -> int:
    """What was asked for, or what suits the device and crops of these sizes."""
    return config.batch_size or suitable_batch_size(config.use_gpu, sizes)


def suitable_batch_size(use_gpu: bool, sizes: Sequence[tuple[int, int]]) -> int:
    """Crops per forward pass on a GPU, or on CPUs; the largest of `sizes` (width, height, px) counts."""
    if not use_gpu:
        return BATCH_ON_CPU
    return max(BATCH_ON_GPU, min(LARGEST_ON_GPU, PIXELS_ON_GPU // max(map(math.prod, sizes))))


def reader_cpus(config: ScoreConfig) -> float:
    """CPUs that Ray counts for a task that reads and decodes a shard."""
    return READER_CPUS_BESIDE_GPU if config.use_gpu else READER_CPUS


def actor_share(config: ScoreConfig, first_stage: Checkpoint | None) -> tuple[float, float]:
    """CPUs and GPUs that Ray counts for an actor.

    The two stages take turns, so they share what one of them would have. Without a GPU an actor shares each core with a reader: which of
    the two is the slower one depends on the model, and the machine gives each what the other leaves.
    """
    stages = 2 if first_stage else 1
    return choose_cpus_per_actor(config) * (1 if config.use_gpu else 1 - READER_CPUS) / stages, int(config.use_gpu) / stages


def choose_cpus_per_actor(config: ScoreConfig) -> int:
    """What was asked for, or on CPUs two if no CPU is left over that way."""
    if config.cpus_per_actor or config.num_actors or config.use_gpu:
        return config.cpus_per_actor or 1
    several = CPUS_PER_ACTOR * capacity.num_fitting(cpus=CPUS_PER_ACTOR, gpus=0)
    return CPUS_PER_ACTOR if several >= capacity.num_fitting(cpus=1, gpus=0) else 1


def choose_num_actors(config: ScoreConfig, num_shards: int) -> int:
    """What was asked for, or as many as the cluster holds and so many shards are worth."""
    cpus = choose_cpus_per_actor(config)
    fitting = capacity.num_fitting(cpus=cpus, gpus=int(config.use_gpu))
    if config.use_gpu:  # One CPU has to be left to read.
        fitting = min(fitting, int((capacity.num_cpus() - reader_cpus(config)) / cpus))
    return config.num_actors or max(1, min(fitting, num_shards // SHARDS_PER_ACTOR))


def num_actors_up(config: ScoreConfig) -> int:
    """As many as the nodes hold that are up, with room to read beside them."""
    return capacity.num_fitting(cpus=choose_cpus_per_actor(config), gpus=int(config.use_gpu), are_up=True)


def require_cluster(config: ScoreConfig, first_stage: Checkpoint | None) -> None:
    """Refuses a run whose actors, at least one, and one task that reads the cluster cannot hold."""
    count, stages = config.num_actors or 1, 2 if first_stage else 1
    actors = capacity.Need("actors", count, choose_cpus_per_actor(config) / stages, int(config.use_gpu) / stages)
    needs = [actors, *([dataclasses.replace(actors, name="first-stage actors")] if first_stage else [])]
    if config.use_gpu:
        needs.append(capacity.Need("reading", 1, reader_cpus(config)))
    capacity.require(f"scoring with {count} actors", needs, hint="change --num-actors, --cpus-per-actor or --use-gpu")


def dry_run(config: ScoreConfig) -> str:
    """What there is to do and what the cluster offers, for people; nothing is written."""
    models, first_stage = load_checkpoints(config)
    plan = plan_run(config, models, first_stage, None, storage.resolve_uri(config.predictions_uri) if config.predictions_uri else "")
    size = "unknown size" if plan.num_bytes is None else f"{plan.num_bytes / 2**30:.2f} GiB"
    lines = [f"inputs: {plan.num_inputs} in {len(plan.counts)} shards of up to {max(plan.counts)}, {size}"]
    for name, model in [*((f"{model.task} model", model) for model in models), *([("first stage", first_stage)] if first_stage else [])]:
        lines.append(f"{name}: {model.framing} framing, {_text(model.size)} px, {model.uri}")
    if (passes := (1 + config.flip_test) * len(config.test_scales)) > 1:
        lines.append(f"each crop goes through each model {passes} times")
    lines.append(f"cluster: {capacity.describe()}")
    try:
        require_cluster(config, first_stage)
    except ValueError as error:
        lines.append(f"does not fit: {error}")
    else:
        num_actors = choose_num_actors(config, len(plan.counts))
        lines.append(f"fits: {num_actors} actors of {choose_cpus_per_actor(config)} CPUs{' and a GPU' if config.use_gpu else ''} each")
    return "\n".join(lines)
