"""Shards, predictor actors, commit.

A shard of inputs is the unit of work, of retry, of resume and of commit. It flows through a CPU task that reads and decodes it, and through
an actor that predicts and commits one Parquet file; Ray Data streams, retries and spreads them. `posepipe.journal` is the run's folder.
"""

import dataclasses
import json
import math
import time
from collections import Counter
from typing import Any

import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, ExecutionResources

from posepipe import capacity, cluster, gallery, journal, planning, storage, summaries, writers
from posepipe.config import ScoreConfig
from posepipe.predicting import FirstStage, Predictor
from posepipe.predictions import SUMMARY_FILE
from posepipe.progress import Progress
from posepipe.reading import ShardReader
from posepipe.retrying import StorageUnavailableError

OVERLAYS_FILE = "overlays.jpg"
SHARDS_IN_FLIGHT_PER_CPU = 2
# A GPU is done with a shard before Ray Data sees that it has begun.
SHARDS_IN_FLIGHT_PER_GPU = 8


def run(config: ScoreConfig) -> str:
    """The job: says what there is to do, or scores; returns what to print."""
    return planning.dry_run(config) if config.dry_run else summaries.describe(score(config), config.predictions_uri)


def score(config: ScoreConfig) -> dict[str, Any]:
    """Predicts for every input and commits PREDICTION rows shard by shard; goes on where a run of the same stopped.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        ValueError: no checkpoint, no inputs, models that do not go together, a folder with predictions of something else, another writer at
            work, too small a cluster.
        StorageUnavailableError: the storage was gone for too long; the same call goes on.
    """
    models, first_stage = planning.load_checkpoints(config)
    run_uri = storage.resolve_uri(config.predictions_uri)
    run = journal.read_run(run_uri)
    journal.require_own(run_uri, run)
    if not config.overwrite and storage.exists(storage.join_uri(run_uri, storage.SUCCESS)):
        # Complete: whether this is the same run is all there is to find out.
        planning.plan_run(config, models, first_stage, run, run_uri)
        summary = summaries.read(run_uri)
        if not summary["statuses"].keys() & set(config.redo):
            print(f"{run_uri} is complete; its summary is read, nothing is scored", flush=True)
            _draw_overlays(config, run_uri, summary)
            return summary
    planning.require_cluster(config, first_stage)
    with writers.Writer(run_uri, config.takeover_after) as writer:
        if config.overwrite:
            planning.require_apart(config, run_uri)
            journal.clear(run_uri, writer, OVERLAYS_FILE, SUMMARY_FILE)
        run = journal.read_run(run_uri)
        plan = planning.plan_run(config, models, first_stage, run, run_uri)
        if run is None:
            writer.check(is_fresh=True)
            plan = planning.store_plan(config, plan, run_uri)
        done_uri = journal.done_folder(run_uri, plan.identity)
        done = _valid_done(run_uri, done_uri)
        done = journal.reopen(run_uri, done_uri, done, config.redo, writer, OVERLAYS_FILE, SUMMARY_FILE)
        session = _run_shards(config, plan, run_uri, done_uri, done, writer)
        if sorted(done) != list(range(len(plan.counts))) or sum(record["rows"] for record in done.values()) != plan.num_inputs:
            raise RuntimeError(f"{len(done)} of {len(plan.counts)} shards are done, or their rows are not the {plan.num_inputs} inputs")
        files = [{name: record[name] for name in ("file", "rows", "sha256")} for _, record in sorted(done.items())]
        statuses = sum((Counter(record["statuses"]) for record in done.values()), Counter())
        manifest = {**plan.identity, "num_inputs": plan.num_inputs, "files": files, "statuses": dict(sorted(statuses.items()))}
        # Who wakes after it was replaced hears of it some time later; the summary is the other one's by then.
        writer.check(is_fresh=True)
        summary = summaries.summarise(config, plan.models, run_uri, [done[shard] for shard in sorted(done)], session)
        journal.finish(run_uri, manifest, writer)
    _draw_overlays(config, run_uri, summary)
    return summary


def _draw_overlays(config: ScoreConfig, run_uri: str, summary: dict[str, Any]) -> None:
    """Once per run: a driver may have died before it drew."""
    overlays_uri = storage.join_uri(run_uri, OVERLAYS_FILE)
    if config.num_overlays and summary["rows_predicted"] and not storage.exists(overlays_uri):
        gallery.draw_overlays(run_uri, overlays_uri, config.num_overlays)


def _valid_done(run_uri: str, done_uri: str) -> dict[int, dict[str, Any]]:
    """The done records whose part is there; the others are taken away, so that their shards are done again."""
    done = journal.list_done(done_uri)
    if done:
        parts = journal.list_parts(run_uri)
        lost = [shard for shard, record in done.items() if record["file"] not in parts]
        journal.forget_done(done_uri, lost)
        done = {shard: record for shard, record in done.items() if shard not in lost}
    return done


def _run_shards(
    config: ScoreConfig, plan: planning.Plan, run_uri: str, done_uri: str, done: dict[int, dict[str, Any]], writer: writers.Writer
) -> summaries.Session:
    """Does what is not in `done` yet and adds it there."""
    todo = [shard for shard in range(len(plan.counts)) if shard not in done]
    before = sum(record["rows"] for record in done.values())
    if done:
        print(f"going on: {len(done)} of {len(plan.counts)} shards are done, {len(todo)} are left", flush=True)
    started = time.monotonic()
    if todo:
        dataset = _pipeline(config, plan, run_uri, done_uri, todo)
        errors: Counter[str] = Counter()
        # The first actor waits for its node itself.
        up = max(1, planning.num_actors_up(config))
        num_missing = max(0, planning.choose_num_actors(config, len(todo)) - up)
        nodes = cluster.ask_for_nodes(num_missing, planning.choose_cpus_per_actor(config), int(config.use_gpu), beside=up)
        with nodes, Progress("score", plan.num_inputs, "inputs", done=before) as progress:
            try:
                for row in dataset.iter_rows():
                    record = json.loads(row["record"])
                    done[record["shard"]] = record
                    errors.update({name: count for name, count in record["statuses"].items() if name != "ok"})
                    progress.update(record["rows"], ", ".join(f"{count} {name}" for name, count in sorted(errors.items())))
                    writer.check()
            except ray.exceptions.RayError as error:
                if (fault := _storage_fault(error, run_uri)) is not None:
                    raise fault from error
                raise
    return summaries.Session(num_scored=plan.num_inputs - before, seconds=time.monotonic() - started)


def _storage_fault(error: BaseException | None, run_uri: str) -> StorageUnavailableError | None:
    """The StorageUnavailableError that a task ended with, for people; None where it was something else."""
    while error is not None:
        for found in (error, getattr(error, "cause", None)):
            if isinstance(found, StorageUnavailableError):
                return StorageUnavailableError(f"{found}; what is done is kept at {run_uri}, the same command goes on from there")
        error = error.__cause__
    return None


def _shards_in_flight(config: ScoreConfig) -> int:
    """Shards that an actor has been given."""
    return SHARDS_IN_FLIGHT_PER_GPU if config.use_gpu else SHARDS_IN_FLIGHT_PER_CPU * planning.choose_cpus_per_actor(config)


def _num_concurrent(config: ScoreConfig) -> int:
    """Shards that an actor is at: one per core, or on a GPU one that it predicts and another of which it writes the rows."""
    return 2 if config.use_gpu else planning.choose_cpus_per_actor(config)


def _pool(config: ScoreConfig, num_actors: int) -> dict[str, int]:
    """The actors of a stage: all from the start where the nodes that are up hold them, otherwise as many as these hold, and more with more.

    Actors that wait for nodes would take all that the first ones have, and leave nothing to readers or to the other stage: with fewer nodes
    than there may be the run would stand still.
    """
    up = planning.num_actors_up(config)
    return {"size": num_actors} if up >= num_actors else {"min_size": 1, "initial_size": max(1, up), "max_size": num_actors}


def store_limit(config: ScoreConfig, num_actors: int, shard_bytes: int) -> int:
    """Bytes of crops that Ray Data may keep in the object store, however much it holds: they would be lost with the driver.

    Of these, three eighths are for what readers are at, and one is for what waits for the actors or lies with them: reading is at most half
    of this ahead. (The other half Ray Data keeps for the actors' results, which are small.)
    """
    num_readers = max(1, int(capacity.num_cpus() / planning.reader_cpus(config)))
    in_flight = _shards_in_flight(config) * num_actors
    if config.use_gpu:
        return 4 * shard_bytes * (num_readers + in_flight)
    # A model on CPUs is seldom so quick that all readers are at work all of the time.
    return max(2**27, shard_bytes * (num_readers + 2 * in_flight))


def _pipeline(config: ScoreConfig, plan: planning.Plan, run_uri: str, done_uri: str, todo: list[int]) -> ray.data.Dataset:
    work = [{"shard": shard, "spec": json.dumps(plan.specs[shard])} for shard in todo]
    dataset = ray.data.from_items(work, override_num_blocks=len(work))
    num_actors = planning.choose_num_actors(config, len(todo))
    crops = max(plan.counts) * 3 * max(sum(map(math.prod, plan.sizes)), math.prod(plan.first_stage.size) if plan.first_stage else 0)
    limit = store_limit(config, num_actors, crops)
    dataset.context.execution_options.resource_limits = ExecutionResources(object_store_memory=limit)
    reader = ShardReader(
        run_uri=run_uri,
        files=tuple(plan.files),
        done_uri=done_uri,
        framing=plan.models[0].framing,
        sizes=plan.sizes,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        unreachable_after=config.unreachable_after,
        niceness=planning.READER_NICENESS_BESIDE_GPU if config.use_gpu else 0,
    )
    shared: dict[str, Any] = {
        "batch_size": planning.choose_batch_size(config, [*plan.sizes, *([plan.first_stage.size] if plan.first_stage else [])]),
        "num_threads": planning.choose_cpus_per_actor(config),
        "use_gpu": config.use_gpu,
        "flip_test": config.flip_test,
        "precision": config.precision,
    }
    readers = planning.reader_cpus(config)
    cpus, gpus = planning.actor_share(config, plan.first_stage)
    actors: dict[str, Any] = {
        "compute": ActorPoolStrategy(
            **_pool(config, num_actors),
            max_tasks_in_flight_per_actor=_shards_in_flight(config),
            max_concurrent_calls_per_actor=_num_concurrent(config),
            enable_true_multi_threading=_num_concurrent(config) > 1,
        ),
        "num_cpus": cpus,
        "num_gpus": gpus,
        "runtime_env": cluster.NETWORK_ENV,
    }
    if plan.first_stage:
        first_reader = dataclasses.replace(reader, framing="image", sizes=(plan.first_stage.size,))
        arguments = {"checkpoint": plan.first_stage, **shared}
        dataset = dataset.map(first_reader, num_cpus=readers).map(FirstStage, fn_constructor_kwargs=arguments, **actors)
    arguments = {
        "checkpoints": plan.models,
        "sizes": plan.sizes,
        "run_uri": run_uri,
        "done_uri": done_uri,
        "run_id": config.run_id,
        "test_scales": config.test_scales,
        **shared,
    }
    return dataset.map(reader, num_cpus=readers).map(Predictor, fn_constructor_kwargs=arguments, **actors)
