"""config.py: bounds, choices, presets, files, and who has the last word."""

import pytest
import yaml

from posepipe.config import (
    PRESETS,
    DemoConfig,
    PrepareConfig,
    ScoreConfig,
    TrainConfig,
    TuneConfig,
    check_choice,
    parse,
    parse_search,
    user_errors,
)

PREPARE = {"mpii_uri": "raw", "samples_uri": "samples"}
TRAIN = {"samples_uri": "samples", "runs_uri": "runs", "name": "first"}
SCORE = {"checkpoint_uri": "run", "predictions_uri": "predictions", "samples_uri": "samples"}
TRAIN_FLAGS = ("--samples-uri", "samples", "--runs-uri", "runs", "--name", "first")


def refusal(capsys, config_class, *flags):
    """What a user reads who gives flags that are refused."""
    with pytest.raises(SystemExit) as caught:
        parse(config_class, flags)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    return " ".join((printed.err + printed.out).replace("│", " ").split())


def yaml_file(tmp_path, **values):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


# Bounds and choices


def test_the_defaults_are_in_bounds():
    assert PrepareConfig(**PREPARE).size == 220
    assert TrainConfig(**TRAIN).model == "resnetv2_50"
    assert TuneConfig(train=TrainConfig(**TRAIN)).scheduler == "asha"
    assert ScoreConfig(**SCORE).split == "val"
    assert DemoConfig().size == 128


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (PrepareConfig, PREPARE | {"size": 7}, "--size must be at least 8, got 7"),
        (PrepareConfig, PREPARE | {"shard_size": 0}, "--shard-size must be at least 1, got 0"),
        (PrepareConfig, PREPARE | {"val_percent": 100}, r"--val-percent must be in \[0, 100\), got 100"),
        (PrepareConfig, PREPARE | {"val_percent": -1}, r"--val-percent must be in \[0, 100\), got -1"),
        (PrepareConfig, {"mpii_uri": "raw"}, "--samples-uri says where the samples go; only --dry-run can do without"),
        (PrepareConfig, PREPARE | {"framing": "square"}, "unknown framing 'square'; choices: image, person"),
        (PrepareConfig, PREPARE | {"people": "one"}, "unknown people 'one'; choices: single, all"),
        (TrainConfig, TRAIN | {"task": "hands"}, "unknown task 'hands'; choices: head, pose"),
        (TrainConfig, TRAIN | {"regression_head": "rle"}, "unknown regression head 'rle'; choices: direct, paper, heatmap"),
        (TrainConfig, TRAIN | {"missing_joints": "drop"}, "unknown missing joints 'drop'; choices: mask, zero"),
        (TrainConfig, TRAIN | {"schedule": "step"}, "unknown schedule 'step'; choices: constant, cosine"),
        (TrainConfig, TRAIN | {"precision": "float16"}, "unknown precision 'float16'; choices: float32, bfloat16"),
        (TrainConfig, TRAIN | {"epochs": 0}, "--epochs must be at least 1, got 0"),
        (TrainConfig, TRAIN | {"num_workers": 0}, "--num-workers must be at least 1, got 0"),
        (TrainConfig, TRAIN | {"cpus_per_worker": 0}, "--cpus-per-worker must be at least 1, got 0"),
        (TrainConfig, TRAIN | {"max_failures": -1}, "--max-failures must be at least 0, got -1"),
        (TrainConfig, TRAIN | {"feature_stride": 3}, "--feature-stride must be at least 4, got 3"),
        (TrainConfig, TRAIN | {"batch_size": 7, "num_workers": 8}, "--batch-size must be at least 16, got 7"),
        (TrainConfig, TRAIN | {"learning_rate": 0.0}, "--learning-rate must be positive, got 0.0"),
        (TrainConfig, TRAIN | {"learning_rate": float("nan")}, "--learning-rate must be positive, got nan"),
        (TrainConfig, TRAIN | {"name": ""}, "--name must be one folder name, got ''"),
        (TrainConfig, TRAIN | {"name": "a/b"}, "--name must be one folder name, got 'a/b'"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "num_trials": 0}, "--num-trials must be at least 1, got 0"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "scheduler": "pbt"}, "unknown scheduler 'pbt'; choices: asha, none"),
        (TuneConfig, {"train": TrainConfig(**TRAIN), "search": ("lr=grid:1",)}, "unknown field to search 'lr'; choices: "),
        (ScoreConfig, SCORE | {"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        (ScoreConfig, SCORE | {"split": "dev"}, "unknown split 'dev'; choices: train, val, test"),
        (ScoreConfig, SCORE | {"images_uri": "images"}, "give either --samples-uri or --images-uri"),
        (ScoreConfig, SCORE | {"samples_uri": ""}, "give either --samples-uri or --images-uri"),
        (DemoConfig, {"epochs": 3}, "--epochs must be at least 4, got 3"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_choices(config_class, values, message):
    with pytest.raises(ValueError, match=message):
        config_class(**values)


def test_a_dry_run_needs_no_place_for_samples():
    assert PrepareConfig(mpii_uri="raw", dry_run=True).samples_uri == ""


def test_two_samples_per_worker_are_enough():
    assert TrainConfig(**TRAIN, batch_size=16, num_workers=8).batch_size == 16


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        TrainConfig(**TRAIN).epochs = 1


def test_a_choice_that_is_one_passes():
    check_choice("thing", "a", ("a", "b"))
    with pytest.raises(ValueError, match="unknown thing 'c'; choices: a, b"):
        check_choice("thing", "c", ("a", "b"))


# Command line


def test_flags_make_a_config():
    config = parse(TrainConfig, [*TRAIN_FLAGS, "--task", "head", "--epochs", "3", "--augment", "--weights", "imagenet", "b.pt"])
    assert config == TrainConfig(**TRAIN, task="head", epochs=3, augment=True, weights=("imagenet", "b.pt"))


def test_a_sweep_takes_the_flags_of_a_training_run():
    config = parse(TuneConfig, [*TRAIN_FLAGS, "--epochs", "3", "--search", "seed=grid:1,2", "--num-trials", "4"])
    assert config == TuneConfig(train=TrainConfig(**TRAIN, epochs=3), search=("seed=grid:1,2",), num_trials=4)


@pytest.mark.parametrize(
    ("config_class", "flags", "said"),
    [
        (TrainConfig, (*TRAIN_FLAGS, "--epochs", "0"), "--epochs must be at least 1, got 0"),
        (TrainConfig, (*TRAIN_FLAGS, "--task", "hands"), "invalid choice 'hands'"),
        (TrainConfig, (*TRAIN_FLAGS, "--epoch", "3"), "Unrecognized options: --epoch"),
        (TrainConfig, TRAIN_FLAGS[:4], "--name"),
        (TrainConfig, (*TRAIN_FLAGS, "--preset", "nature"), "unknown preset 'nature'; choices: paper-head-deeppose, paper-head-resnet"),
        (PrepareConfig, ("--mpii-uri", "raw", "--samples-uri", "s", "--preset", "paper-pose-resnet"), "--preset"),
        (TuneConfig, (*TRAIN_FLAGS, "--search", "seed=grid:x"), "invalid literal for int()"),
    ],
)
def test_a_users_mistake_ends_with_a_message_and_status_2(capsys, config_class, flags, said):
    assert said in refusal(capsys, config_class, *flags)


def test_user_errors_says_value_errors_without_a_trace(capsys):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise ValueError("expected a, got b")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: expected a, got b\n"


def test_user_errors_lets_other_errors_through():
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a fault of the program")

    # Ray names the errors of its tasks so, and lets them inherit from what the task raised.
    task_error = type("RayTaskError(ValueError)", (ValueError,), {})
    with pytest.raises(task_error), user_errors():
        raise task_error


# Presets and files


@pytest.mark.parametrize(
    ("preset", "task", "model", "batch_size", "epochs", "learning_rate"),
    [
        ("paper-head-deeppose", "head", "deeppose", 128, 100, 5e-5),
        ("paper-head-resnet", "head", "resnetv2_50", 32, 100, 5e-5),
        ("paper-pose-deeppose", "pose", "deeppose", 128, 300, 5e-4),
        ("paper-pose-resnet", "pose", "resnetv2_50", 32, 300, 5e-4),
    ],
)
def test_presets_hold_the_papers_numbers(preset, task, model, batch_size, epochs, learning_rate):
    assert parse(TrainConfig, [*TRAIN_FLAGS, "--preset", preset]) == TrainConfig(
        **TRAIN,
        task=task,
        model=model,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        regression_head="paper",
        missing_joints="zero",
        schedule="constant",
    )


def test_no_preset_is_untested():
    assert len(PRESETS) == 4


def test_the_papers_samples_are_the_defaults_of_prepare():
    config = PrepareConfig(**PREPARE)
    assert (config.framing, config.people, config.size) == ("image", "single", 220)


def test_flags_beat_the_file_and_the_file_beats_the_preset(tmp_path):
    file = yaml_file(tmp_path, batch_size=64, epochs=7)
    config = parse(TrainConfig, ["--preset", "paper-pose-deeppose", "--config", file, *TRAIN_FLAGS, "--epochs", "2"])
    assert (config.model, config.batch_size, config.epochs) == ("deeppose", 64, 2)
    # Their order on the command line does not matter.
    assert parse(TrainConfig, [*TRAIN_FLAGS, "--epochs", "2", "--config", file, "--preset", "paper-pose-deeppose"]) == config


def test_a_file_may_hold_every_kind_of_field(tmp_path):
    values = TRAIN | {"weights": ["a.pt", "b.pt"], "augment": True, "freeze_norm": False, "learning_rate": 0.001, "task": "head"}
    config = parse(TrainConfig, ["--config", yaml_file(tmp_path, **values)])
    assert config == TrainConfig(**TRAIN, weights=("a.pt", "b.pt"), augment=True, learning_rate=0.001, task="head")


def test_a_flag_switches_off_what_the_file_switched_on(tmp_path):
    file = yaml_file(tmp_path, augment=True)
    assert parse(TrainConfig, [*TRAIN_FLAGS, "--config", file]).augment
    assert not parse(TrainConfig, [*TRAIN_FLAGS, "--config", file, "--no-augment"]).augment


def test_a_sweep_reads_files_and_presets(tmp_path):
    file = yaml_file(tmp_path, search=["batch_size=grid:8,16", "seed=choice:1,2"], num_trials=3)
    config = parse(TuneConfig, [*TRAIN_FLAGS, "--preset", "paper-head-resnet", "--config", file])
    assert (config.train.task, config.search, config.num_trials) == ("head", ("batch_size=grid:8,16", "seed=choice:1,2"), 3)


def test_an_unknown_field_of_a_file_is_refused(capsys, tmp_path):
    assert "Unrecognized options: --epoch" in refusal(capsys, TrainConfig, *TRAIN_FLAGS, "--config", yaml_file(tmp_path, epoch=3))


def test_a_file_that_is_not_there_is_refused(capsys, tmp_path):
    said = refusal(capsys, TrainConfig, *TRAIN_FLAGS, "--config", str(tmp_path / "nothing.yaml"))
    assert said.startswith("error: cannot read the config file")


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n- b\n", "must hold `field: value` lines, got list"), ("a: [", "cannot read the config")]
)
def test_a_file_that_holds_no_fields_is_refused(capsys, tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    assert message in refusal(capsys, TrainConfig, *TRAIN_FLAGS, "--config", str(tmp_path / "config.yaml"))


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
    ],
)
def test_a_search_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_search(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature_stride=grid:16,0", "--feature-stride must be at least 4, got 0"),
        ("regression_head=choice:direct,rle", "unknown regression head 'rle'; choices: direct, paper, heatmap"),
        ("learning_rate=grid:-1", "--learning-rate must be positive"),
        ("batch_size=choice:0", "--batch-size must be at least 2, got 0"),
        ("augment=grid:maybe", "unknown value of augment 'maybe'; choices: true, false"),
    ],
)
def test_a_search_of_values_that_no_training_run_takes_is_refused_before_it_starts(text, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(train=TrainConfig(**TRAIN), search=(text,))
