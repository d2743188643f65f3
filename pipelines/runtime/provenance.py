"""What a result was made with: source code, libraries, commit."""

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

#: The package's own folder; in the checkout its packages are links.
ROOT = Path(histoblend.__file__).parent

#: Libraries whose version can change a result, so that another version rebuilds.
LIBRARIES = (
    "numpy", "pandas", "scipy", "scikit-image", "scikit-learn", "numba", "xgboost-cpu", "xgboost", "keras",
    "tensorflow-cpu", "tensorflow", "jax", "torch", "onnxruntime", "tf2onnx", "pillow",
)  # fmt: skip


def code_digest(sources: tuple[str, ...]) -> str:
    """SHA-256 over packages and single files: a changed formula or template must not meet an old result."""
    digest = hashlib.sha256()
    for name, path in source_files(sources):
        digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def source_files(sources: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Every file of folders, files and patterns such as ``models/*.py``: its name in the package, and where it is.

    Raises
    ------
    ValueError
        There is no such file.
    """
    for source in sources:
        folder, _, pattern = source.rpartition("/") if "*" in source else (source, "", "**/*")
        start = (ROOT / folder).resolve()  # a search does not follow a link
        files = [start] if start.is_file() else [path for path in sorted(start.glob(pattern)) if path.is_file()]
        if not files:
            raise ValueError(f"a source must be a file, a folder or a pattern in the package; {source!r} is none.")
        for path in files:
            if not ignored_path(path.relative_to(start)):
                yield source if path == start else f"{folder}/{path.relative_to(start).as_posix()}", path


@functools.cache
def _installed() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    return dict(_installed())


def commit() -> str:
    """The checkout's commit, with ``-dirty`` where files differ from it; the version outside a checkout."""
    checkout = ROOT.parent.parent
    # An installed copy may be inside somebody else's repository, whose commit says nothing about this code.
    if not (checkout / "src" / ROOT.name / "__init__.py").is_file() or not (checkout / ".git").exists():
        return histoblend.__version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return histoblend.__version__
