"""The command line of a job: presets, YAML files, flags, a user's mistakes.

A YAML file may hold the fields of a config; the command line has the last word: defaults < preset < file < flags.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tyro
import yaml

from posepipe import storage
from posepipe.config import PRESETS, TrainConfig, TuneConfig, check_choice

Config = TypeVar("Config")


def parse(config_class: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """Builds a config from the command line; a user's mistake ends the program with a message and exit status 2."""
    has_presets = config_class in (TrainConfig, TuneConfig)
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", default="")
    if has_presets:
        files.add_argument("--preset", default="")
    known, flags = files.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    epilog = "--config FILE.yaml holds the same fields." + (f" --preset NAME, of: {', '.join(PRESETS)}." if has_presets else "")
    with user_errors():
        values: dict[str, Any] = {}
        if has_presets and known.preset:
            check_choice("preset", known.preset, tuple(PRESETS))
            values |= PRESETS[known.preset]
        if known.config:
            values |= _read_yaml(known.config)
        # Of a flag that is given twice the last one counts.
        return tyro.cli(config_class, args=[*_to_flags(values), *flags], description=f"{config_class.__doc__}\n\n{epilog}")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with the message alone where a user's mistake (a ValueError) comes up."""
    try:
        yield
    except ValueError as error:
        # An error from inside a Ray task keeps its trace: the mistake is not the user's, or not known to be.
        if type(error).__name__.startswith("RayTaskError"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _read_yaml(uri: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(storage.read_bytes(uri))
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the config file {uri}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config file {uri} must hold `field: value` lines, got {type(values).__name__}")
    return values


def _to_flags(values: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return flags
