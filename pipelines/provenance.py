"""What a result was made with: source code, libraries, commit."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Libraries whose version can change a result, so that another version rebuilds.
LIBRARIES = (
    "numpy", "pandas", "scipy", "scikit-image", "scikit-learn", "numba", "xgboost-cpu", "xgboost", "keras",
    "tensorflow-cpu", "tensorflow", "jax", "torch", "onnxruntime", "tf2onnx", "pillow",
)  # fmt: skip


def code_digest(sources: tuple[str, ...]) -> str:
    """SHA-256 over packages and single files: a changed formula or template must not meet an old result."""
    digest = hashlib.sha256()
    for source in sources:
        place = ROOT / source
        files = [path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        for path in sorted(files) if place.is_dir() else [place]:
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """The checkout's commit, with ``-dirty`` where files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
