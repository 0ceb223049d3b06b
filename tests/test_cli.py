"""cli.py: flags, presets, files, and who has the last word."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posepipe.cli import command, parse, user_errors
from posepipe.config import DEFAULT_MILESTONES, PrepareConfig, ScoreConfig, TrainConfig, TuneConfig
from posepipe.optimizers import learning_rate_factor
from posepipe.presets import PRESETS
from posepipe.retrying import StorageUnavailableError

ROOT = Path(__file__).resolve().parents[1]
PREPARE = {"mpii_uri": "raw", "samples_uri": "samples"}
TRAIN = {"samples_uri": "samples", "runs_uri": "runs", "name": "first"}
SCORE = {"checkpoint_uri": "run", "predictions_uri": "predictions", "samples_uri": "samples"}
SCORE_FLAGS = ("--checkpoint-uri", "run", "--predictions-uri", "predictions", "--samples-uri", "samples")
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


# Command line


def test_flags_make_a_config():
    config = parse(TrainConfig, [*TRAIN_FLAGS, "--task", "head", "--epochs", "3", "--augment", "--weights", "imagenet", "b.pt"])
    assert config == TrainConfig(**TRAIN, task="head", epochs=3, augment=True, weights=("imagenet", "b.pt"))


def test_a_command_makes_the_config_that_it_was_made_of():
    config = TrainConfig(
        **TRAIN | {"samples_uri": "my samples"}, augment=True, weights=("a.pt", "b.pt"), learning_rate=2e-5, max_failures=0
    )
    said = command("train", config)
    assert "--seed" not in said, "what is not said is at its default"
    assert shlex.split(said)[:3] == ["python", "-m", "jobs.train"]
    assert parse(TrainConfig, shlex.split(said)[3:]) == config


def test_a_sweep_takes_the_flags_of_a_training_run():
    config = parse(TuneConfig, [*TRAIN_FLAGS, "--epochs", "3", "--search", "seed=choice:1,2", "--num-trials", "4"])
    assert config == TuneConfig(train=TrainConfig(**TRAIN, epochs=3), search=("seed=choice:1,2",), num_trials=4)


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


@pytest.mark.parametrize("kind", [FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError])
def test_user_errors_says_of_a_place_what_is_wrong_with_it(capsys, kind):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise kind("list.txt")
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {kind.__name__}: list.txt\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (KeyboardInterrupt("the run a was interrupted"), "the run a was interrupted"),
    ],
)
def test_user_errors_says_that_it_was_interrupted(capsys, error, said):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise error
    assert caught.value.code == 130
    assert capsys.readouterr().err == f"{said}\n"


def test_user_errors_lets_other_errors_through():
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a fault of the program")

    # Ray names the errors of its tasks so, and lets them inherit from what the task raised.
    task_error = type("RayTaskError(ValueError)", (ValueError,), {})
    with pytest.raises(task_error), user_errors():
        raise task_error


@pytest.mark.parametrize(
    ("job", "flags"),
    [("prepare", ["--mpii-uri", "m", "--samples-uri", "s"]), ("train", ["--samples-uri", "s", "--runs-uri", "r", "--name", "n"])],
)
def test_a_job_that_is_interrupted_before_it_has_begun_says_so(job, flags):
    """What it needs takes seconds to import."""
    program = f"""
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "posepipe.cluster":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = {flags}
import jobs.{job}
jobs.{job}.main()
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stderr) == (130, "interrupted\n")


def test_a_job_names_itself_as_it_is_started():
    """And not by the path of its file, which nobody can run."""
    said = subprocess.run([sys.executable, "-m", "jobs.prepare"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2
    assert "python -m jobs.prepare --help" in said.stderr
    assert str(ROOT) not in said.stderr


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


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_config(preset):
    config = parse(TrainConfig, [*TRAIN_FLAGS, "--preset", preset])
    for name, value in PRESETS[preset].items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


def test_the_published_recipes_step_after_170_and_200_of_210_epochs():
    for name in PRESETS:
        if name.startswith("mpii-resnet50-"):
            config = parse(TrainConfig, [*TRAIN_FLAGS, "--preset", name])
            # 22,246 people of the usual train list are 43 full batches of 512 and a part.
            steps = 44
            rates = [learning_rate_factor(config, epoch * steps + 1, 210 * steps) for epoch in (100, 169, 171, 199, 201)]
            assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
            assert [learning_rate_factor(config, step, 210 * steps) for step in (0, 249, 499)] == pytest.approx([1 / 500, 0.5, 1])


@pytest.mark.parametrize(("size", "expected"), [("192x256", (192, 256)), ("96", (96, 96))])
def test_a_size_is_one_number_or_two_on_the_command_line_and_in_a_file(tmp_path, size, expected):
    (tmp_path / "prepare.yaml").write_text(f"mpii_uri: raw\nsamples_uri: samples\nframing: person\nsize: {size}\nmargin: 0.25\n")
    flags = ["--mpii-uri", "raw", "--samples-uri", "samples", "--framing", "person", "--size", size, "--margin", "0.25"]
    for arguments in (flags, ["--config", str(tmp_path / "prepare.yaml")]):
        config = parse(PrepareConfig, arguments)
        assert config.crop_size == expected
        assert config.crop_margin == (expected[0] // 4, expected[1] // 4)


def test_the_papers_samples_are_the_defaults_of_prepare():
    config = PrepareConfig(**PREPARE)
    assert (config.framing, config.people, config.size) == ("image", "single", 220)


def test_another_schedule_leaves_the_milestones_of_the_preset_behind(tmp_path):
    preset = [*TRAIN_FLAGS, "--preset", "mpii-resnet50-rle"]
    for other in (["--schedule", "cosine"], ["--schedule=cosine"], ["--config", yaml_file(tmp_path, schedule="cosine")]):
        config = parse(TrainConfig, [*preset, *other])
        assert (config.schedule, config.milestones) == ("cosine", DEFAULT_MILESTONES)
    assert parse(TrainConfig, [*preset, "--schedule", "step"]).milestones == (0.81, 0.9524)
    assert parse(TrainConfig, [*preset, "--schedule", "step", "--milestones", "0.5"]).milestones == (0.5,)


def test_milestones_that_are_asked_for_need_their_schedule(capsys):
    flags = (*TRAIN_FLAGS, "--preset", "mpii-resnet50-rle", "--schedule", "cosine", "--milestones", "0.5")
    assert "--milestones are of --schedule step, got --schedule cosine" in refusal(capsys, TrainConfig, *flags)


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


# Fields of several values


def test_a_field_of_several_values_may_be_given_again_and_again():
    expected = ScoreConfig(**SCORE | {"checkpoint_uri": ("a", "b")})
    rest = ["--predictions-uri", "predictions", "--samples-uri", "samples"]
    for flags in (
        ["--checkpoint-uri", "a", *rest, "--checkpoint-uri", "b"],
        ["--checkpoint-uri", "a", "b", *rest],
        ["--checkpoint-uri=a", *rest, "--checkpoint-uri=b"],
        ["--checkpoint_uri", "a", *rest, "--checkpoint-uri=b"],
    ):
        assert parse(ScoreConfig, flags) == expected


def test_a_sweep_merges_the_lists_of_its_training_run_too():
    flags = [*TRAIN_FLAGS, "--weights", "imagenet", "--search", "seed=grid:1", "--weights", "b.pt", "--search", "batch_size=grid:8"]
    config = parse(TuneConfig, flags)
    assert (config.train.weights, config.search) == (("imagenet", "b.pt"), ("seed=grid:1", "batch_size=grid:8"))


def test_of_other_flags_the_last_one_counts():
    assert parse(TrainConfig, [*TRAIN_FLAGS, "--epochs", "3", "--weights", "a.pt", "--epochs=4"]).epochs == 4


def test_the_command_lines_list_replaces_the_files(tmp_path):
    file = yaml_file(tmp_path, checkpoint_uri=["a", "b"], samples_uri="samples", predictions_uri="predictions", limit=0)
    assert parse(ScoreConfig, ["--config", file]).checkpoint_uri == ("a", "b")
    for flags in (["--checkpoint-uri", "c"], ["--checkpoint-uri=c"], ["--checkpoint_uri", "c"]):
        assert parse(ScoreConfig, ["--config", file, *flags]).checkpoint_uri == ("c",)
        assert parse(ScoreConfig, [*flags, "--config", file]).checkpoint_uri == ("c",)


def test_scales_come_from_the_command_line_or_a_file(tmp_path):
    file = yaml_file(tmp_path, **SCORE, test_scales=[0.9, 1, 1.1], flip_test=True)
    expected = ScoreConfig(**SCORE | {"checkpoint_uri": ("run",), "test_scales": (0.9, 1.0, 1.1), "flip_test": True})
    assert parse(ScoreConfig, ["--config", file]) == expected
    assert parse(ScoreConfig, [*SCORE_FLAGS, "--flip-test", "--test-scales", "0.9", "1", "1.1"]) == expected


def test_one_value_of_a_file_is_a_list_of_one(tmp_path):
    file = yaml_file(tmp_path, **SCORE)
    assert parse(ScoreConfig, ["--config", file]) == ScoreConfig(**SCORE | {"checkpoint_uri": ("run",)})


def test_a_negative_number_is_a_value_and_no_flag(capsys):
    assert "--limit must be at least 0, got -1" in refusal(capsys, ScoreConfig, *SCORE_FLAGS, "--limit", "-1")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--test-scales", "1", "--test-scales", "1"),
            "--test-scales must be different numbers from 0.5 to 2, at least one, got [1.0, 1.0]",
        ),
        (("--images-uri", "x"), "give either --samples-uri or --images-uri"),
        (("--limit", "3"), "--limit goes with --images-uri"),
        (("--first-stage-uri", "x"), "--first-stage-uri goes with --images-uri"),
        (("--sample-fraction", "0.5"), "--sample-fraction goes with --images-uri"),
        (("--sample-fraction", "0"), "--sample-fraction must be in (0, 1], got 0.0"),
        (("--shard-size", "0"), "--shard-size must be at least 1, got 0"),
        (("--takeover-after", "0.5"), "--takeover-after must be at least 1, got 0.5"),
        (("--price-per-hour", "-1"), "--price-per-hour must be at least 0, got -1.0"),
        (("--max-bytes", "0"), "--max-bytes must be at least 1, got 0"),
        (("--predictions-uri", ""), "--predictions-uri says where the predictions go"),
    ],
)
def test_scoring_refuses_what_makes_no_sense(capsys, flags, said):
    assert said in refusal(capsys, ScoreConfig, *SCORE_FLAGS, *flags)


# A storage that is gone


def test_a_storage_that_is_gone_ends_with_its_message_and_status_1(capsys):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise StorageUnavailableError("the storage failed for 600 s; the same command goes on from there")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: the storage failed for 600 s; the same command goes on from there\n"
