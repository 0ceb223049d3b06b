"""study_rows.py: the recipe of every row, and what it changes."""

import dataclasses
from typing import get_args

import pytest

from posepipe.config import PrepareConfig, ScoreConfig, StudyConfig, StudyRow
from posepipe.presets import PRESETS
from posepipe.study import train_config
from posepipe.study_rows import AFTER, ROWS, SCORED, base_of, changes_of, settings_of, split_settings

WEIGHTS = ("weights/a.pt", "weights/b.pt")
CONFIG = StudyConfig(mpii_uri="raw", study_uri="study", weights=WEIGHTS, model="resnet10t", size=96, batch_size=48, feature_stride=8)


def test_the_names_of_the_config_are_the_rows_in_their_order() -> None:
    assert get_args(StudyRow) == (*ROWS, *SCORED)
    assert set(AFTER) <= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_samples_and_a_training(name: str) -> None:
    prepared, trained = split_settings(settings_of(name, CONFIG))
    assert {"framing", "people", "size"} <= set(prepared)
    PrepareConfig(mpii_uri="raw", samples_uri="samples", **prepared)
    config = train_config(name, dataclasses.replace(CONFIG, extra_mpii_uri=("more",)), epochs=3)
    assert (config.name, config.epochs, config.task, len(config.extra_samples_uri)) == (name, 3, "pose", 1)
    for field, value in trained.items():
        assert getattr(config, field) == value or field == "epochs"


@pytest.mark.parametrize("name", SCORED)
def test_every_row_that_is_only_scored_is_a_scoring(name: str) -> None:
    ScoreConfig(checkpoint_uri=("run",), samples_uri="samples", predictions_uri="predictions", **SCORED[name])


def test_the_first_row_is_the_papers_preset_as_it_is() -> None:
    config = dataclasses.asdict(train_config("paper", CONFIG, PRESETS["paper-pose-resnet"]["epochs"]))
    assert PRESETS["paper-pose-resnet"].items() <= config.items()
    prepared, _ = split_settings(settings_of("paper", CONFIG))
    defaults = PrepareConfig(mpii_uri="raw", samples_uri="samples")
    assert prepared == {name: getattr(defaults, name) for name in ("framing", "people", "size")}


def test_the_second_row_is_its_recipe_on_the_backbone_of_the_study() -> None:
    one, other = (settings_of(name, CONFIG) for name in ("paper", "paper-small"))
    assert {name: value for name, value in other.items() if one.get(name) != value} == {
        "size": 96,
        "model": "resnet10t",
        "feature_stride": 8,
    }


def test_people_framing_augmentation_and_weights_come_one_by_one() -> None:
    found = {name: settings_of(name, CONFIG) for name in ROWS}
    assert [name for name in ROWS if found[name]["framing"] == "image"] == ["paper", "paper-small", "masks"]
    assert [name for name in ROWS if found[name].get("augment")] == list(ROWS)[4:]
    assert [name for name in ROWS if found[name].get("weights") == WEIGHTS] == list(ROWS)[5:]
    assert [name for name in ROWS if found[name]["missing_joints"] == "zero"] == ["paper", "paper-small"]
    assert {found[name]["batch_size"] for name in list(ROWS)[2:]} == {48}


@pytest.mark.parametrize("name", ["rle", "simcc", "heatmap", "unet"])
def test_regression_heads_stand_beside_one_another(name: str) -> None:
    assert base_of(name) == "pretrained"
    assert settings_of(name, CONFIG)["regression_head"] == name


def test_a_row_says_what_it_changes() -> None:
    assert changes_of("paper-small", CONFIG) == "size 96, model resnet10t, feature stride 8"
    assert changes_of("person", CONFIG) == "framing person, people all"
    assert changes_of("pretrained", CONFIG) == "weights a.pt + b.pt"
    assert changes_of("simcc", CONFIG).startswith("pretrained, but regression head simcc")
    assert changes_of("paper", CONFIG).startswith("framing image, people single, size 220, regression head paper")


def test_of_a_study_of_some_rows_each_says_what_it_changes_of_one_that_is_there() -> None:
    some = dataclasses.replace(CONFIG, rows=("paper", "person", "rle", "heatmap"))
    assert changes_of("person", some).startswith("framing person, people all, size 96, regression head direct")
    assert changes_of("rle", some) == "regression head rle, augment True, weights a.pt + b.pt"
    assert changes_of("heatmap", some) == "regression head heatmap"
    alone = dataclasses.replace(CONFIG, rows=("paper-small",))
    assert changes_of("paper-small", alone).startswith("framing image, people single, size 96")
