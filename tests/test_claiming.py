"""Which run goes on in a folder, and which one is refused it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from posepipe import storage
from posepipe.claiming import claim_folder, describe_config
from posepipe.config import TrainConfig
from posepipe.runs import CONFIG_FILE


def config(samples_uri: str, runs_uri: Path, name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(samples_uri=samples_uri, runs_uri=str(runs_uri), name=name, **changes)


def write_manifest(folder: Path, **changes: object) -> str:
    """A manifest alone, of samples without a file."""
    storage.write_json(str(folder / storage.MANIFEST), {"framing": "person", "size": 64, "rows": {"train": 5, "val": 1}, **changes})
    return str(folder)


def test_a_run_begun_anew_in_the_same_place_is_another_one(tmp_path: Path) -> None:
    run = dataclasses.asdict(config("samples", tmp_path, "run"))
    first = claim_folder(str(tmp_path / "run"), run)
    assert claim_folder(str(tmp_path / "run"), run) == first
    assert storage.read_json(str(tmp_path / "run" / CONFIG_FILE))["id"] == first
    shutil.rmtree(tmp_path / "run")
    assert claim_folder(str(tmp_path / "run"), run) != first
    # One from before there were ids is known by its place, as it was then.
    storage.write_json(str(tmp_path / "older" / CONFIG_FILE), run)
    assert claim_folder(str(tmp_path / "older"), run) == storage.fingerprint(str(tmp_path / "older"))


def test_a_setting_from_after_a_run_began_had_its_default(tmp_path: Path) -> None:
    run = dataclasses.asdict(config("samples", tmp_path, "run"))
    storage.write_json(str(tmp_path / CONFIG_FILE), {name: value for name, value in run.items() if name != "deterministic"})
    claim_folder(str(tmp_path), run)
    storage.write_json(str(tmp_path / CONFIG_FILE), {name: value for name, value in run.items() if name != "deterministic"})
    with pytest.raises(ValueError, match=r"\(deterministic was False, now True\)"):
        claim_folder(str(tmp_path), {**run, "deterministic": True})


def test_settings_of_several_values_are_those_that_were_written(tmp_path: Path) -> None:
    run = config(write_manifest(tmp_path / "samples"), tmp_path, "run", schedule="step", milestones=(0.5, 0.75))
    claim_folder(str(tmp_path / "run"), describe_config(run))
    claim_folder(str(tmp_path / "run"), describe_config(run))
    # A run from before they existed had the default.
    kept = storage.read_json(str(tmp_path / "run" / CONFIG_FILE))
    storage.write_json(str(tmp_path / "run" / CONFIG_FILE), {name: kept[name] for name in kept if name != "milestones"})
    with pytest.raises(ValueError, match=r"\(milestones was \[0\.8, 0\.95\], now \[0\.5, 0\.75\]\)"):
        claim_folder(str(tmp_path / "run"), describe_config(run))
    plain = dataclasses.replace(run, milestones=TrainConfig(samples_uri="s", runs_uri="r", name="x").milestones)
    claim_folder(str(tmp_path / "run"), describe_config(plain))


def test_a_run_from_before_extra_samples_had_none(tmp_path: Path) -> None:
    older = {"seed": 0, "samples_fingerprint": "a"}
    storage.write_json(str(tmp_path / CONFIG_FILE), older)
    claim_folder(str(tmp_path), {**older, "extra_samples_fingerprints": []})
    with pytest.raises(ValueError, match=r"\(extra_samples_fingerprints was \[\], now \['b'\]\)"):
        claim_folder(str(tmp_path), {**older, "extra_samples_fingerprints": ["b"]})


def test_extra_samples_may_move_but_not_change(tmp_path: Path) -> None:
    main, one, moved, other = (write_manifest(tmp_path / name, people=people) for name, people in zip("abcd", "aeeo", strict=True))
    run = config(main, tmp_path, "run", extra_samples_uri=(one,))
    claim_folder(str(tmp_path / "run"), describe_config(run))
    claim_folder(str(tmp_path / "run"), describe_config(dataclasses.replace(run, extra_samples_uri=(moved,))))
    for extra in ((), (other,), (one, other)):
        with pytest.raises(ValueError, match=r"exists with other settings \(extra_samples_fingerprints was"):
            claim_folder(str(tmp_path / "run"), describe_config(dataclasses.replace(run, extra_samples_uri=extra)))
