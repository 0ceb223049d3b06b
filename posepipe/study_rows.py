"""What each row of a study changes of the one before, from the paper's recipe on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from posepipe.config import PrepareConfig, StudyConfig
from posepipe.presets import PRESETS

FROM_STUDY = object()
"""The value is that of the study's own field of this name."""

# How every row from masks on is trained.
RECIPE: Mapping[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "ema_decay": 0.999,
}

# What each row changes of the one before: settings of jobs.prepare and of jobs.train.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"framing": "image", "people": "single", "size": 220, **PRESETS["paper-pose-resnet"]},
    "paper-small": {"size": FROM_STUDY, "model": FROM_STUDY, "feature_stride": FROM_STUDY},
    "masks": {"regression_head": "direct", "missing_joints": "mask", "batch_size": FROM_STUDY, "precision": FROM_STUDY, **RECIPE},
    "person": {"framing": "person", "people": "all"},
    "augment": {"augment": True},
    "pretrained": {"weights": FROM_STUDY},
    "rle": {"regression_head": "rle"},
    "simcc": {"regression_head": "simcc"},
    "heatmap": {"regression_head": "heatmap"},
    "unet": {"regression_head": "unet"},
}
# These stand beside one another, each as a change of the same row.
AFTER: Mapping[str, str] = {"simcc": "pretrained", "heatmap": "pretrained", "unet": "pretrained"}

# Rows without a training: the best row so far, scored with these settings of jobs.score.
SCORED: Mapping[str, Mapping[str, Any]] = {"flip-test": {"flip_test": True}}


def settings_of(name: str, config: StudyConfig) -> dict[str, Any]:
    """All settings of a row that is trained: those of the row that it stands on, and its own changes."""
    base = base_of(name)
    own = {field: getattr(config, field) if value is FROM_STUDY else value for field, value in ROWS[name].items()}
    return {**(settings_of(base, config) if base else {}), **own}


def base_of(name: str) -> str | None:
    """The row that a row stands on; None for the first."""
    return AFTER.get(name, _before(name))


def _before(name: str) -> str | None:
    names = list(ROWS)
    return None if name == names[0] else names[names.index(name) - 1]


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of jobs.prepare, and those of jobs.train."""
    prepared = {item.name for item in dataclasses.fields(PrepareConfig)}
    samples = {name: value for name, value in settings.items() if name in prepared}
    return samples, {name: value for name, value in settings.items() if name not in prepared}


def changes_of(name: str, config: StudyConfig) -> str:
    """What a row changes of the one before in this study, or of the one that is named, for people; all settings of the first."""
    earlier = list(ROWS)[: list(ROWS).index(name)]
    before = next((other for other in reversed(earlier) if other in config.rows), None)
    base = base_of(name) if base_of(name) in config.rows else before
    settings, older = settings_of(name, config), settings_of(base, config) if base else {}
    changed = say({field: value for field, value in settings.items() if field not in older or older[field] != value})
    return changed if base == before else f"{base}, but {changed}"


def say(settings: Mapping[str, Any]) -> str:
    """Settings for people."""

    def shown(value: Any) -> str:
        # The places of weights are in the command line; their names are enough here.
        return " + ".join(str(each).rpartition("/")[2] for each in value) if isinstance(value, tuple) else str(value)

    return ", ".join(f"{field.replace('_', ' ')} {shown(value)}" for field, value in settings.items() if field not in ("task", "epochs"))
