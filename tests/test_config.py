"""config.py: bounds, choices, what a sweep may try."""

import pytest

from posepipe.config import (
    DEFAULT_MILESTONES,
    DemoConfig,
    PrepareConfig,
    ScoreConfig,
    TrainConfig,
    TuneConfig,
    check_choice,
    parse_search,
    parse_size,
    with_parameters,
)

PREPARE = {"mpii_uri": "raw", "samples_uri": "samples"}
TRAIN = {"samples_uri": "samples", "runs_uri": "runs", "name": "first"}
SCORE = {"checkpoint_uri": ("run",), "predictions_uri": "predictions", "samples_uri": "samples"}


# Bounds and choices


def test_the_defaults_are_in_bounds():
    assert PrepareConfig(**PREPARE).crop_size == (220, 220)
    assert TrainConfig(**TRAIN).model == "resnetv2_50"
    assert TuneConfig(train=TrainConfig(**TRAIN)).scheduler == "asha"
    assert ScoreConfig(**SCORE).split == "val"
    assert DemoConfig().size == 128


@pytest.mark.parametrize(("text", "size"), [(220, (220, 220)), ("220", (220, 220)), ("192x256", (192, 256)), ("8x8", (8, 8))])
def test_a_size_is_a_side_or_width_and_height(text, size):
    assert parse_size(text) == size
    assert PrepareConfig(**PREPARE, size=text).crop_size == size


@pytest.mark.parametrize(
    ("values", "margin"),
    [
        ({"framing": "person", "size": "192x256"}, (38, 51)),
        ({"framing": "person", "size": 220, "margin": 0.1}, (22, 22)),
        ({"framing": "person", "margin": 0.0}, (0, 0)),
        ({"framing": "image"}, (0, 0)),
        ({"framing": "image", "margin": 0.0}, (0, 0)),
    ],
)
def test_person_crops_have_a_margin_of_a_fifth_and_whole_pictures_none(values, margin):
    assert PrepareConfig(**PREPARE, **values).crop_margin == margin


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (PrepareConfig, PREPARE | {"size": 7}, "--size must be a number of px of at least 8, or WIDTHxHEIGHT of such, got 7"),
        *(
            (PrepareConfig, PREPARE | {"size": size}, f"--size must be a number of px of at least 8, or WIDTHxHEIGHT of such, got '{size}'")
            for size in ("192x", "x256", "192x7", "7x192", "192x256x3", "-9", "19.5", "wide", "")
        ),
        (PrepareConfig, PREPARE | {"framing": "person", "margin": -0.1}, r"--margin must be in \[0, 1\], got -0.1"),
        (PrepareConfig, PREPARE | {"framing": "person", "margin": 1.1}, r"--margin must be in \[0, 1\], got 1.1"),
        (PrepareConfig, PREPARE | {"margin": 0.2}, "--margin goes with --framing person: there is nothing around a whole picture, got 0.2"),
        (DemoConfig, {"size": "64x31"}, "--size must be a number of px of at least 32, or WIDTHxHEIGHT of such, got '64x31'"),
        (PrepareConfig, PREPARE | {"shard_size": 0}, "--shard-size must be at least 1, got 0"),
        (PrepareConfig, PREPARE | {"val_percent": 100}, r"--val-percent must be in \[0, 100\), got 100"),
        (PrepareConfig, PREPARE | {"val_percent": -1}, r"--val-percent must be in \[0, 100\), got -1"),
        (PrepareConfig, {"mpii_uri": "raw"}, "--samples-uri says where the samples go; only --dry-run can do without"),
        (PrepareConfig, PREPARE | {"framing": "square"}, "unknown framing 'square'; choices: image, person"),
        (PrepareConfig, PREPARE | {"people": "one"}, "unknown people 'one'; choices: single, all"),
        (TrainConfig, TRAIN | {"task": "hands"}, "unknown task 'hands'; choices: head, pose"),
        (TrainConfig, TRAIN | {"weight_decay": -0.1}, "--weight-decay must be at least 0, got -0.1"),
        (TrainConfig, TRAIN | {"ema_decay": 1.0}, r"--ema-decay must be in \[0, 1\), got 1.0"),
        (TrainConfig, TRAIN | {"layer_decay": 0.0}, r"--layer-decay must be in \(0, 1\], got 0.0"),
        (TrainConfig, TRAIN | {"milestones": (0.9, 0.5)}, r"--milestones must be rising shares .*, got 0.9 0.5"),
        (TrainConfig, TRAIN | {"milestones": (0.5,)}, "--milestones are of --schedule step, got --schedule constant"),
        (TrainConfig, TRAIN | {"milestones": (170.0, 200.0)}, r"--milestones must be rising shares .*, got 170.0 200.0"),
        (TrainConfig, TRAIN | {"direct_loss": "l1", "regression_head": "rle"}, "--direct-loss l1 is of the direct head; rle has its own"),
        (TrainConfig, TRAIN | {"direct_loss": "giou"}, "--direct-loss giou compares boxes: it needs --task head"),
        (
            TrainConfig,
            TRAIN | {"regression_head": "map"},
            "unknown regression head 'map'; choices: direct, paper",
        ),
        (TrainConfig, TRAIN | {"missing_joints": "drop"}, "unknown missing joints 'drop'; choices: mask, zero"),
        (TrainConfig, TRAIN | {"schedule": "linear"}, "unknown schedule 'linear'; choices: constant, step, cosine"),
        (TrainConfig, TRAIN | {"precision": "float16"}, "unknown precision 'float16'; choices: float32, bfloat16"),
        (TrainConfig, TRAIN | {"epochs": 0}, "--epochs must be at least 1, got 0"),
        (TrainConfig, TRAIN | {"learning_rate": float("inf")}, "--learning-rate must be positive and finite, got inf"),
        (TrainConfig, TRAIN | {"clip_norm": float("inf")}, "--clip-norm must be finite, got inf"),
        (TrainConfig, TRAIN | {"weight_decay": float("nan")}, "--weight-decay must be at least 0, got nan"),
        (ScoreConfig, SCORE | {"unreachable_after": -1.0}, "--unreachable-after must be at least 0, got -1.0"),
        (TrainConfig, TRAIN | {"num_workers": 0}, "--num-workers must be a number of at least 1, or MIN:MAX, got 0"),
        (TrainConfig, TRAIN | {"num_workers": "4:1"}, "--num-workers must be a number of at least 1, or MIN:MAX, got '4:1'"),
        (TrainConfig, TRAIN | {"num_workers": "2:"}, "--num-workers must be a number of at least 1, or MIN:MAX, got '2:'"),
        (TrainConfig, TRAIN | {"num_workers": "1:9", "batch_size": 8}, "--batch-size must be at least 9, got 8"),
        (TrainConfig, TRAIN | {"checkpoint_every": -1}, "--checkpoint-every must be at least 0, got -1"),
        (ScoreConfig, SCORE | {"redo": ("missing",), "overwrite": True}, "--redo and --overwrite exclude each other"),
        (ScoreConfig, SCORE | {"redo": ("broken",)}, "unknown status 'broken'; choices: missing, forbidden"),
        (TrainConfig, TRAIN | {"on_nonfinite": "ignore"}, "unknown on nonfinite 'ignore'; choices: stop, skip"),
        (TrainConfig, TRAIN | {"max_preemption_failures": -2}, "--max-preemption-failures must be at least -1, got -2"),
        (TrainConfig, TRAIN | {"cpus_per_worker": 0}, "--cpus-per-worker must be at least 1, got 0"),
        (TrainConfig, TRAIN | {"max_failures": -1}, "--max-failures must be at least 0, got -1"),
        (TrainConfig, TRAIN | {"feature_stride": 3}, "--feature-stride must be at least 4, got 3"),
        (TrainConfig, TRAIN | {"batch_size": 7, "num_workers": 8}, "--batch-size must be at least 8, got 7"),
        (TrainConfig, TRAIN | {"learning_rate": 0.0}, "--learning-rate must be positive and finite, got 0.0"),
        (TrainConfig, TRAIN | {"learning_rate": float("nan")}, "--learning-rate must be positive and finite, got nan"),
        (TrainConfig, TRAIN | {"name": ""}, "--name must be one folder name, got ''"),
        (TrainConfig, TRAIN | {"name": "a/b"}, "--name must be one folder name, got 'a/b'"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "num_trials": 0}, "--num-trials must be at least 1, got 0"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "search_algorithm": "tpe"}, "unknown search algorithm 'tpe'; choices: random"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "num_trials": 2}, "--num-trials needs a field to choose: one with choice, uniform or"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "search_algorithm": "optuna"}, "--search-algorithm optuna needs a field to choose"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "search": ("seed=grid:1", "seed=choice:2")}, "--search names seed twice"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "search": ()}, "--search needs at least one field"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "scheduler": "pbt"}, "unknown scheduler 'pbt'; choices: asha, none"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "search": ("lr=grid:1",)}, "unknown field to search 'lr'; choices: "),
        (ScoreConfig, SCORE | {"batch_size": -1}, "--batch-size must be at least 0, got -1"),
        (ScoreConfig, SCORE | {"split": "dev"}, "unknown split 'dev'; choices: train, val, test"),
        (ScoreConfig, SCORE | {"images_uri": "images"}, "give either --samples-uri or --images-uri"),
        (ScoreConfig, SCORE | {"samples_uri": ""}, "give either --samples-uri or --images-uri"),
        (ScoreConfig, SCORE | {"shard_size": 128}, "--shard-size goes with --images-uri; samples are cut and decoded already"),
        (ScoreConfig, SCORE | {"max_bytes": 10}, "--max-bytes goes with --images-uri"),
        (ScoreConfig, SCORE | {"max_pixels": 10}, "--max-pixels goes with --images-uri"),
        (ScoreConfig, SCORE | {"samples_uri": "", "images_uri": "images", "split": "test"}, "--split goes with --samples-uri"),
        (ScoreConfig, SCORE | {"checkpoint_uri": ()}, "--checkpoint-uri needs at least one checkpoint"),
        (ScoreConfig, SCORE | {"test_scales": ()}, r"--test-scales must be different numbers from 0.5 to 2, at least one, got \[\]"),
        (ScoreConfig, SCORE | {"test_scales": (1.0, 0.9, 1.0)}, r"--test-scales must be different numbers .*, got \[1.0, 0.9, 1.0\]"),
        (ScoreConfig, SCORE | {"test_scales": (0.4,)}, r"--test-scales must be different numbers from 0.5 to 2, at least one, got \[0.4\]"),
        (ScoreConfig, SCORE | {"test_scales": (1.0, float("nan"))}, r"--test-scales must be different numbers .*, got \[1.0, nan\]"),
        (DemoConfig, {"epochs": 3}, "--epochs must be at least 4, got 3"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_choices(config_class, values, message):
    with pytest.raises(ValueError, match=message):
        config_class(**values)


def test_a_dry_run_needs_no_place_for_samples():
    assert PrepareConfig(mpii_uri="raw", dry_run=True).samples_uri == ""


def test_one_sample_per_worker_is_enough():
    assert TrainConfig(**TRAIN, batch_size=8, num_workers=8).batch_size == 8


@pytest.mark.parametrize(("num_workers", "bounds"), [(3, (3, 3)), ("3", (3, 3)), ("1:4", (1, 4))])
def test_workers_are_a_number_or_a_range(num_workers, bounds):
    config = TrainConfig(**TRAIN, num_workers=num_workers)
    assert (config.min_workers, config.max_workers) == bounds


def test_the_trials_of_a_sweep_take_no_range_of_workers():
    with pytest.raises(ValueError, match=r"a trial's --num-workers must be one number, got '1:4'"):
        TuneConfig(train=TrainConfig(**TRAIN, num_workers="1:4"))


def test_scoring_averages_nothing_unless_asked_to():
    config = ScoreConfig(**SCORE)
    assert (config.flip_test, config.test_scales) == (False, (1.0,))
    assert ScoreConfig(**SCORE | {"checkpoint_uri": ("a", "b", "c"), "test_scales": (0.5, 2.0)}).test_scales == (0.5, 2.0)


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        TrainConfig(**TRAIN).epochs = 1


def test_a_choice_that_is_one_passes():
    check_choice("thing", "a", ("a", "b"))
    with pytest.raises(ValueError, match="unknown thing 'c'; choices: a, b"):
        check_choice("thing", "c", ("a", "b"))


# --search


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("learning_rate=grid:1e-4,5e-4", ("learning_rate", "grid", (1e-4, 5e-4))),
        ("batch_size=choice:32,128", ("batch_size", "choice", (32, 128))),
        ("model=grid:resnet18,deeppose", ("model", "grid", ("resnet18", "deeppose"))),
        ("regression_head=grid:direct,heatmap", ("regression_head", "grid", ("direct", "heatmap"))),
        ("augment=grid:true,false", ("augment", "grid", (True, False))),
        ("learning_rate=loguniform:1e-5,1e-3", ("learning_rate", "loguniform", (1e-5, 1e-3))),
        ("learning_rate=uniform:0.1,0.2", ("learning_rate", "uniform", (0.1, 0.2))),
        ("weight_decay=uniform:0,0.1", ("weight_decay", "uniform", (0.0, 0.1))),
    ],
)
def test_a_search_is_parsed_in_the_fields_type(text, parsed):
    name, kind, values = parse_search(text)
    assert (name, kind, values) == parsed
    assert [type(value) for value in values] == [type(value) for value in parsed[2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=grid:1", "unknown field to search 'lr'; choices: model, regression_head"),
        ("weights=grid:a", "unknown field to search 'weights'"),
        ("name=grid:a", "unknown field to search 'name'"),
        ("sample_cache=grid:decoded,encoded", "unknown field to search 'sample_cache'"),
        ("epochs=grid:1,2", "unknown field to search 'epochs'"),
        ("seed", "unknown kind of search for seed ''; choices: grid, choice, uniform, loguniform"),
        ("seed=1,2", "unknown kind of search for seed '1,2'"),
        ("seed=normal:1,2", "unknown kind of search for seed 'normal'"),
        ("seed=uniform:1,2", "uniform draws floats, but seed is int; use grid or choice"),
        ("seed=grid:1,many", "'seed=grid:1,many': invalid literal for int"),
        ("seed=grid:", "'seed=grid:': invalid literal for int"),
        ("learning_rate=uniform:1", "expected uniform:LOW,HIGH"),
        ("learning_rate=loguniform:1,2,3", "expected loguniform:LOW,HIGH"),
        ("learning_rate=loguniform:1e-3,1e-5", "expected 0 < LOW < HIGH"),
        ("learning_rate=loguniform:0,1", "expected 0 < LOW < HIGH"),
        ("weight_decay=uniform:-0.1,1", "expected 0 <= LOW < HIGH"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_search(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature_stride=grid:16,0", "--feature-stride must be at least 4, got 0"),
        ("regression_head=choice:direct,map", "unknown regression head 'map'; choices: direct, paper, rle"),
        ("learning_rate=grid:-1", "--learning-rate must be positive"),
        ("batch_size=choice:0", "--batch-size must be at least 2, got 0"),
        ("augment=grid:maybe", "unknown value of augment 'maybe'; choices: true, false"),
    ],
)
def test_a_search_of_values_that_no_training_run_takes_is_refused_before_it_starts(text, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(train=TrainConfig(**TRAIN), search=(text,))


def test_a_trial_of_another_schedule_leaves_the_milestones_of_the_sweep_behind():
    shared = TrainConfig(**TRAIN, schedule="step", milestones=(0.5,))
    assert with_parameters(shared, {"schedule": "step", "learning_rate": 0.5}).milestones == (0.5,)
    cosine = with_parameters(shared, {"schedule": "cosine"})
    assert (cosine.schedule, cosine.milestones) == ("cosine", DEFAULT_MILESTONES)
    TuneConfig(train=shared, search=("schedule=choice:step,cosine",))
