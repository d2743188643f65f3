"""Download a weights file once, check it, and keep it in Keras' own folder."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from histoblend.data.errors import InputError, innermost_reason
from histoblend.data.sources.download import Resuming
from histoblend.data.storage.atomic import write_text_atomically
from histoblend.features.networks.applications import file_sha256
from histoblend.features.networks.backend import HUB, DownloadedWeights
from histoblend.features.networks.vit_weights import SAFETENSORS, safetensors_shapes
from histoblend.features.networks.weights import CheckpointError

TIMEOUT_SECONDS = 30
PAUSE_SECONDS = 2.0  # after a lost connection; doubled each time


def models_folder() -> Path:
    """Keras' folder for downloaded weights: ``models`` under ``KERAS_HOME``, or under ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def fetch(
    weights: DownloadedWeights, folder: Path | None = None, *, progress: Callable[[int], None] | None = None
) -> Path:
    """Return the path of a weights file; download it if it is missing or damaged.

    Parameters
    ----------
    weights : DownloadedWeights
    folder : Path, optional
        Defaults to :func:`models_folder`; created if missing.
    progress : callable, optional
        Called with the number of bytes just received of a file that is downloaded with resume, as large ones are.

    Returns
    -------
    Path
        The file's digest is the published one, if there is one. Otherwise it is a complete file of its kind, not
        verified at the first download; its SHA-256 is then recorded beside it, and compared from then on.

    Raises
    ------
    CheckpointError
        The download failed, or the file is neither the published one nor that of the first download. The message names
        the folder to put the file into by hand, and a backbone that needs no download. Or a file without a published
        digest was put there by hand, and is no complete file of its kind; it is kept.
    """
    import pooch
    import requests

    folder = folder or models_folder()
    path = folder / weights.file
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a folder to keep {weights.file} in; got: {error.strerror}. "
            "Set KERAS_HOME to a writable folder."
        ) from error
    if not weights.digest and path.is_file() and (fault := _fault(path)):
        if not _record(path).exists():  # put there by hand, or by another program
            raise CheckpointError(
                f"{path}: expected complete weights; got: {fault.rstrip('.')}. Put a complete file there, or remove "
                "this one to download it."
            )
        path.unlink()  # without a digest, pooch keeps every existing file
    url, headers = _at_hub(weights.url)
    download: Any = _download_hdf5
    if path.suffix != ".h5":  # up to 5 GB
        part = folder / f"{weights.file}.part"
        download = _Resumed(
            part,
            timeout_s=TIMEOUT_SECONDS,
            pause_s=PAUSE_SECONDS,
            headers=headers,
            same_version=not weights.digest,
        )
        download.progress = progress
    elif weights.digest:
        download = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)
    try:
        pooch.retrieve(url, weights.digest or None, weights.file, folder, downloader=download)
    except (requests.RequestException, InputError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{innermost_reason(error)}."
        raise CheckpointError(
            f"{weights.file}: expected to download it from {url}; got: {reason} {_remedy(weights)}Connect to "
            f"the internet, put that file into {folder} by hand, name a local one (embeddings.weights or cnn.weights), "
            'or choose a backbone that needs no download, such as "efficientnet-lite2" (embeddings.backbone or '
            "cnn.backbone)."
        ) from error
    except ValueError as error:  # another digest, or no complete file
        raise CheckpointError(f"{path}: {error} Nothing was kept: look at what {url} gives.") from error
    if not weights.digest:
        _compare_with_record(path)
    return path


def _record(path: Path) -> Path:
    """Path of the SHA-256 of a file's first download."""
    return path.with_name(f"{path.name}.sha256")


def _compare_with_record(path: Path) -> None:
    """Check a file against the SHA-256 of its first download, which is recorded now if it is the first."""
    record, digest = _record(path), file_sha256(path)
    if not record.exists():
        with contextlib.suppress(OSError):  # a shared folder may be read-only
            write_text_atomically(record, digest)
    elif (recorded := record.read_text(encoding="utf-8").strip()) != digest:
        raise CheckpointError(
            f"{path}: its SHA-256 must be {recorded}, as at the first download, because none is published; got "
            f"{digest}. Remove the file to download it again. If you trust the new file, remove {record.name} instead."
        )


def _download_hdf5(url: str, output: str, _: Any) -> None:
    """Download one file, as pooch calls it; raise ValueError if it is no complete HDF5 file."""
    import pooch

    pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)(url, output, None)
    if fault := _fault(Path(output), ".h5"):
        raise ValueError(f"expected a complete HDF5 file; got: {fault}.")


class _Resumed(Resuming):
    """Resumes a download; raises ValueError if the result is no complete file of its kind."""

    def __call__(self, url: str, output_file: str, _pooch: Any, check_only: bool = False) -> None:
        super().__call__(url, output_file, _pooch, check_only)
        if fault := _fault(Path(output_file), self.part.with_suffix("").suffix):  # pooch's file has no extension
            raise ValueError(f"expected complete weights; got: {fault}.")


def _at_hub(url: str) -> tuple[str, dict[str, str]]:
    """Address of a file, and the headers for it: Hugging Face's may be mirrored, and only there the token is sent."""
    if not url.startswith(f"{HUB}/"):
        return url, {}
    token = os.environ.get("HF_TOKEN", "").strip()
    base = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    return base + url.removeprefix(HUB), {"Authorization": f"Bearer {token}"} if token else {}


def _remedy(weights: DownloadedWeights) -> str:
    """What to do first for a gated file; empty for others."""
    if not weights.gated:
        return ""
    page = weights.url.partition("/resolve/")[0]
    return f"Accept its terms at {page}, and set HF_TOKEN to a token of {HUB}/settings/tokens. Or: "


def _fault(path: Path, kind: str = "") -> str:
    """Return why a file is no complete file of its kind, which is by default that of its name; empty if it is one."""
    kind = kind or path.suffix
    if kind == SAFETENSORS:
        try:
            safetensors_shapes(path)
        except CheckpointError as error:
            return str(error)
        return ""
    if kind != ".h5":
        return "" if zipfile.is_zipfile(path) else "no archive of PyTorch, or a part of one"
    import h5py

    try:
        h5py.File(path, "r").close()  # also fails if the file is shorter than its header says
    except OSError as error:
        return " ".join(str(error).split())
    return ""
