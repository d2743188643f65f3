"""Read a configuration: a TOML file, then a preset, then ``--set key=value``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import names_in
from histoblend.pipelines.config import Config, config_keys
from histoblend.pipelines.runtime.provenance import ROOT


def load_config(
    path: Path, settings: Sequence[str] = (), options: Mapping[str, str] | None = None, preset: str = "default"
) -> Config:
    """Read a TOML file, and apply a preset and then ``key=value`` settings on top.

    Parameters
    ----------
    path : Path
    settings : sequence of str
        ``section.key=value``. The value is parsed as TOML, or taken as text if that fails.
    options : mapping from str to str, optional
        More such settings, and the option that each comes from, in words for messages.
    preset : {"fast", "default", "best"}
        A file of configs/presets. It is appended to the name of the run, except for "default".

    Returns
    -------
    Config

    Raises
    ------
    InputError
        The file is missing or not valid TOML, a preset or key is unknown (the message names the nearest one), or a
        value is invalid.
    """
    shipped = {Path(name).stem: ROOT / "configs" / name for name in names_in(ROOT / "configs", ".toml")}
    if not path.is_file():
        path = shipped.get(str(path), path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, shipped, 1)
        hint = f" Did you mean CONFIG={near[0]} (--config {near[0]})?" if near else ""
        raise InputError(
            f"{path}: expected a TOML file; it does not exist. Shipped configurations: {', '.join(shipped)}.{hint}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: expected a TOML file; got: {error}.") from error
    if preset != "default":
        values = _merged(values, _read_preset(preset))
        values["name"] = f"{values.get('name', Config().name)}-{preset}"
    origins = {setting: f"--set {setting}" for setting in settings} | dict(options or {})
    for setting in (*settings, *(options or ())):
        _apply(values, setting)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, path, origins)) from None


def _read_preset(name: str) -> dict[str, Any]:
    known = [file.removesuffix(".toml") for file in names_in(ROOT / "configs" / "presets", ".toml")]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"PRESET (--preset) must be one of {', '.join(known)}; got {name!r}.{hint}")
    return tomllib.loads((ROOT / "configs" / "presets" / f"{name}.toml").read_text(encoding="utf-8"))


def _merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Values of a file, replaced by those of another file, section by section."""
    both = {key: _merged(values[key], more[key]) for key in values.keys() & more if isinstance(more[key], dict)}
    return values | more | both


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(
            f"--set must look like section.key=value; got {setting!r}. Put no space around '=' (SET='seed=1')."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {setting}: {section!r} is a value, not a section.")
    values[last] = value


def _explain(error: ValidationError, path: Path, origins: Mapping[str, str]) -> str:
    """Describe the first error in one sentence that begins with its origin: a setting, an option or the file."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    names = {setting: setting.partition("=")[0].strip() for setting in origins}
    given = [text for text, name in names.items() if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.")]
    origin = origins[given[-1]] if given else str(path)
    if first["type"] == "extra_forbidden":
        key = names[given[-1]] if given else key
        known = [known for known, _ in config_keys()]
        same = [name for name in known if name.endswith(f".{key}")]  # the section is missing
        near = same or difflib.get_close_matches(key, known, 1, 0.5)
        near = near or difflib.get_close_matches(
            key.rpartition(".")[2], [name.rpartition(".")[2] for name in known], 1, 0.5
        )
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known keys: {', '.join(known)}."
        return f"{origin}: unknown key {key!r}; {hint}"
    return f"{origin}: {key}: {first['msg'].removeprefix('Value error, ')}; got {first['input']!r}."
