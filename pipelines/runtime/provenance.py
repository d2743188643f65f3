"""What a result was made with: source code, library versions and commit."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import histoblend
from histoblend.data.ignored import ignored_path

#: Folder of the package. In the checkout, its subpackages are links.
ROOT = Path(histoblend.__file__).parent

#: Libraries whose version can change a result. Another version causes a rebuild.
LIBRARIES = (
    "numpy", "pandas", "scipy", "scikit-image", "scikit-learn", "numba", "xgboost-cpu", "xgboost", "keras",
    "tensorflow-cpu", "tensorflow", "jax", "torch", "onnxruntime", "pillow",
)  # fmt: skip


def code_digest(sources: tuple[str, ...]) -> str:
    """SHA-256 of packages and single files, so that no old result is used after a change of code or template."""
    digest = hashlib.sha256()
    for name, path in source_files(sources):
        digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def source_files(sources: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every file of folders, files and patterns such as ``models/*.py``.

    A leading ``!`` leaves a file out of folders and patterns; a source that names the file itself still yields it.

    Raises
    ------
    ValueError
        A source matches no file.
    """
    left_out = {(ROOT / source[1:]).resolve() for source in sources if source.startswith("!")}
    for source in sources:
        if source.startswith("!"):
            continue
        folder, _, pattern = source.rpartition("/") if "*" in source else (source, "", "**/*")
        start = (ROOT / folder).resolve()  # a search does not follow a link
        files = [start] if start.is_file() else [path for path in sorted(start.glob(pattern)) if path.is_file()]
        if not files:
            raise ValueError(f"a source must be a file, a folder or a pattern in the package; got {source!r}.")
        for path in files:
            if path == start or not (path in left_out or ignored_path(path.relative_to(start))):
                yield source if path == start else f"{folder}/{path.relative_to(start).as_posix()}", path


@functools.cache
def _installed() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    return dict(_installed())


def commit() -> str:
    """Commit of the checkout, with ``-dirty`` if files differ from it. Outside a checkout, the package version."""
    checkout = ROOT.parent.parent
    # An installed copy may be inside another repository, whose commit says nothing about this code.
    if not (checkout / "src" / ROOT.name / "__init__.py").is_file() or not (checkout / ".git").exists():
        return histoblend.__version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return histoblend.__version__
