"""Artefact folders: the files of a step with a manifest, reused only if the key is equal."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import files_under
from histoblend.data.storage.atomic import (
    PARTIAL,
    remove_unfinished_files,
    sync_folder,
    sync_tree,
    write_text_atomically,
)
from histoblend.pipelines.runtime import signals
from histoblend.pipelines.runtime.provenance import code_digest, commit, library_versions
from histoblend.pipelines.runtime.resources import peak_memory, trim_memory

MANIFEST = "manifest.json"
#: Key of an unfinished step, stored next to its files.
KEY = "key.json"
REBUILD_ADVICE = "Pass --rebuild (make … REBUILD=1) to build it again."


@dataclass(frozen=True)
class StepSpec:
    """One step of a run.

    Attributes
    ----------
    name : str
        As on the command line.
    folder : str
        Under ``runs/<name>/``.
    sources : tuple of str
        Packages and single files, relative to the package root, whose code the result depends on.
    config : mapping
        The part of the configuration that the result depends on.
    inputs : mapping from str to str
        Digest of each input.
    seed : int
    """

    name: str
    folder: str
    sources: tuple[str, ...]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int

    def identity(self) -> dict[str, Any]:
        """Everything that must be equal for a result to be reused."""
        return {
            "step": self.name,
            "config": _plain(self.config),
            "seed": self.seed,
            "inputs": dict(self.inputs),
            "code": code_digest(self.sources),
            "libraries": library_versions(),
        }


@dataclass
class StepResult:
    """What a step reports about its result.

    Attributes
    ----------
    rows : int
    notes : dict
        Further content of the manifest.
    timed : tuple of str
        Files with times or text for readers. Later steps do not depend on them.
    stands_for : mapping from str to str
        Digests of the relevant content of such files.
    """

    rows: int
    notes: dict[str, Any] = field(default_factory=dict)
    timed: tuple[str, ...] = ()
    stands_for: Mapping[str, str] = field(default_factory=dict)


class FinishedStep(NamedTuple):
    """A finished step: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the step's result, which is part of the key of later steps."""
        return str(self.manifest["digest"])


def run_step(
    spec: StepSpec, run: Path, build: Callable[[Path], StepResult], *, rebuild: bool, say: Callable[[str], None]
) -> FinishedStep:
    """Reuse the step's folder if its manifest matches, otherwise build it.

    A step builds in ``<folder>.partial``. An interrupted run leaves that folder behind if it holds any part of the
    result, and the next run with the same key resumes in it. When all data is on disk, the folder is renamed to its
    final name.

    Parameters
    ----------
    spec : StepSpec
    run : Path
        Run folder.
    build : callable
        Writes the step's files into the given folder.
    rebuild : bool
        Build even if the folder was made with another configuration.
    say : callable
        Prints a line for the user.

    Returns
    -------
    FinishedStep

    Raises
    ------
    InputError
        The folder was made with another configuration, and ``rebuild`` is not set.
    """
    folder, partial = run / spec.folder, run / f"{spec.folder}.partial"
    identity = _plain(spec.identity())
    _finish_replacing(partial, folder, identity)
    reason = _why_not_reuse(folder, identity, rebuild)
    if reason is None:
        manifest = read_manifest(folder)
        say(f"{spec.name}: up to date ({manifest['rows']} rows, {folder})")
        return FinishedStep(folder, manifest)
    _open_partial(partial, identity)
    signals.set_step(spec.name)
    say(f"{spec.name}: {reason}")
    started = time.perf_counter()
    try:
        with peak_memory() as peak:
            outcome = build(partial)
    except BaseException:
        if not _files(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    trim_memory()
    remove_unfinished_files(partial)
    manifest = {
        **identity,
        "rows": outcome.rows,
        "seconds": round(time.perf_counter() - started, 3),
        "peak_mb": round(peak(), 1),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "notes": outcome.notes,
        "files": {path.relative_to(partial).as_posix(): file_digest(path) for path in _files(partial)},
        "digest": _digest(partial, outcome),
    }
    # All data first: a manifest must never list files that a power failure can lose.
    sync_tree(partial)
    write_json(partial / MANIFEST, manifest)
    (partial / KEY).unlink()
    replace_folder(partial, folder)
    return FinishedStep(folder, manifest)


def replace_folder(new: Path, target: Path) -> None:
    """Replace ``target`` by ``new``. An interruption never leaves a half-deleted folder under its name."""
    old = target.with_name(f"{target.name}.old")
    sync_tree(new)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _finish_replacing(partial: Path, folder: Path, identity: dict[str, Any]) -> None:
    """Complete the replacement of a folder if a run was killed during it."""
    if (partial / MANIFEST).is_file():
        try:
            finished = _why_not_reuse(partial, identity, rebuild=True) is None
        except OSError:
            finished = False
        if finished and (not folder.exists() or _older(folder, identity)):
            replace_folder(partial, folder)
    # If the run was killed between the two renames and the new folder is not usable, restore the old one.
    restore_folder(folder)


def restore_folder(target: Path) -> None:
    """Restore the folder that :func:`replace_folder` set aside if it was killed between its two renames."""
    old = target.with_name(f"{target.name}.old")
    if not target.exists() and old.exists():
        old.rename(target)
        sync_folder(target.parent)


def _older(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder was made with the same configuration but other input, code or libraries."""
    try:
        return _why_not_reuse(folder, identity, rebuild=False) is not None
    except InputError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished step.

    Raises
    ------
    InputError
        There is no manifest, or it is not valid.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: expected a finished step with {MANIFEST}; there is none. {REBUILD_ADVICE}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / MANIFEST}: expected JSON; got: {error}. {REBUILD_ADVICE}") from error
    if not (
        isinstance(manifest, dict)
        and {"config", "seed", "files", "rows", "notes"} <= manifest.keys()
        and all(isinstance(manifest[key], dict) for key in ("config", "files", "notes"))
    ):
        raise InputError(f"{folder / MANIFEST}: expected the manifest of a step; got something else. {REBUILD_ADVICE}")
    return manifest


def _digest(folder: Path, outcome: StepResult) -> str:
    """Digest for the key of later steps: the content of all files of a step except those with times."""
    paths = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    digests = {name: content_digest(path) for name, path in paths.items() if name not in outcome.timed}
    return hashlib.sha256(json.dumps({**digests, **outcome.stands_for}, sort_keys=True).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content, without the time that Keras stores in its files."""
    if path.suffix != ".keras":
        return file_digest(path)
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(set(archive.namelist()) - {"metadata.json"}):
            digest.update(f"{name}\0".encode() + archive.read(name))
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: to a temporary file in the same folder, which is then renamed."""
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False))


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _why_not_reuse(folder: Path, identity: dict[str, Any], rebuild: bool) -> str | None:
    """Return None if the folder can be reused, otherwise the reason to show when it is built."""
    if not folder.exists():
        return "running"
    try:
        manifest = read_manifest(folder)
    except InputError:
        if not rebuild:
            raise
        return "rebuilding, its manifest is unreadable"
    if manifest.get("config") != identity["config"] or manifest.get("seed") != identity["seed"]:
        difference = _difference(manifest, identity)
        if not rebuild:
            raise InputError(
                f"{folder} was made with another configuration: {difference}. "
                "Choose another run name (RUN=… or --run), or pass --rebuild (make … REBUILD=1) to replace it."
            )
        return f"rebuilding ({difference})"
    for key, what in (("inputs", "input"), ("code", "code"), ("libraries", "library versions")):
        if manifest.get(key) != identity[key]:
            return f"rebuilding, its {what} changed"
    if not isinstance(manifest.get("digest"), str):
        return "rebuilding, its manifest lacks a digest"
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return f"rebuilding, {name} is missing or altered"
    return None


def _difference(manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    old = {"seed": manifest.get("seed"), **flat_keys(manifest.get("config", {}))}
    new = {"seed": identity["seed"], **flat_keys(identity["config"])}
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return "; ".join(f"{key} was {old.get(key)!r}, is now {new.get(key)!r}" for key in keys)


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flat_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _open_partial(partial: Path, identity: dict[str, Any]) -> None:
    """Keep the files of an interrupted run only if their key is the same."""
    key = partial / KEY
    if partial.exists():
        try:
            same = json.loads(key.read_text(encoding="utf-8")) == identity
        except (OSError, ValueError, RecursionError):
            same = False
        if not same:
            shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(key, identity)


def _files(folder: Path) -> list[Path]:
    # A worker that outlived its killed run may still be writing. Its temporary files are not part of the result.
    named = (folder / name for name in files_under(folder) if not name.endswith(PARTIAL))
    return sorted(path for path in named if path.name not in {MANIFEST, KEY})


def _plain(value: Any) -> Any:
    """Pass a value through JSON, so that keys compare equal."""
    return json.loads(json.dumps(value, sort_keys=True))
