"""The command line of a job: presets, YAML files, flags, a user's mistakes.

A YAML file may hold the fields of a config; the command line has the last word: defaults < preset < file < flags.
"""

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro

from posepipe.config import TrainConfig, TuneConfig, check_choice
from posepipe.presets import PRESETS

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
        given = _read_yaml(known.config) if known.config else {}
        flags = _merge_repeated(flags, _tuple_flags(config_class))
        if (_last_value(flags, "--schedule") or given.get("schedule", "step")) != "step":
            values.pop("milestones", None)  # a preset's are of its own schedule
        values |= given
        values = {name: value for name, value in values.items() if f"--{name.replace('_', '-')}" not in flags}
        # Of a flag that is given twice the last one counts.
        return tyro.cli(config_class, prog=_prog(), args=[*to_flags(values), *flags], description=f"{config_class.__doc__}\n\n{epilog}")


def _prog() -> str | None:
    """How this job was started, for `--help` and for mistakes; by default it would be the path of its file, which nobody can run."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with the message alone where a user's mistake (a ValueError) comes up, the storage is gone, or at Ctrl-C."""
    try:
        yield
    except ValueError as error:
        # An error from inside a Ray task keeps its trace: the mistake is not the user's, or not known to be.
        if type(error).__name__.startswith("RayTaskError"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if type(error).__name__.startswith("RayTaskError"):
            raise
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except RuntimeError as error:
        # Here, as it brings botocore, which `--help` can do without.
        from posepipe.retrying import StorageUnavailableError

        if not isinstance(error, StorageUnavailableError):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from error


def _tuple_flags(config_class: Any) -> set[str]:
    """The flags that take several values, of a config and of the config inside it."""
    found: set[str] = set()
    for item in dataclasses.fields(config_class):
        base = get_args(item.type)[0] if get_origin(item.type) is Annotated else item.type
        if dataclasses.is_dataclass(base):
            found |= _tuple_flags(base)
        elif get_origin(base) is tuple:
            found.add(f"--{item.name.replace('_', '-')}")
    return found


def _merge_repeated(flags: Sequence[str], several: set[str]) -> list[str]:
    """`--x a --x b` -> `--x a b` for the flags that take several values, which would otherwise forget the first."""
    groups: list[list[str]] = [[]]
    for flag in flags:
        name, is_assigned, value = flag.partition("=")
        name = name.replace("_", "-")
        if not flag.startswith("--"):
            groups[-1].append(flag)
        elif name in several:
            group = next((group for group in groups if group[:1] == [name]), None)
            # The group that is added to has to be the last one, where its values go.
            groups = [each for each in groups if each is not group]
            groups.append([*(group or [name]), *([value] if is_assigned else [])])
        else:
            groups.append([flag])
    return [flag for group in groups for flag in group]


def _last_value(flags: Sequence[str], name: str) -> str:
    """Of the last flag of this name, an empty string where there is none."""
    found = ""
    for flag, after in zip(flags, [*flags[1:], ""], strict=False):
        before, is_assigned, value = flag.partition("=")
        if before == name:
            found = value if is_assigned else after
    return found


def _read_yaml(uri: str) -> dict[str, Any]:
    # Here, as they take longer to import than all that `--help` needs.
    import yaml

    from posepipe import storage

    try:
        values = yaml.safe_load(storage.read_bytes(uri))
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the config file {uri}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config file {uri} must hold `field: value` lines, got {type(values).__name__}")
    return values


def command(job: str, config: Any) -> str:
    """The command line that says what `config` says: the fields that have no default, and those that are not at theirs."""
    given = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if getattr(config, item.name) != item.default}
    return shlex.join(["python", "-m", f"jobs.{job}", *to_flags(given)])


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Fields and their values as arguments of a job."""
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return flags
