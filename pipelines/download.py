"""Download, check and unpack data sets; download weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from histoblend.data.errors import InputError
from histoblend.data.sources.archives import unpack_archive
from histoblend.data.sources.download import PCAM, ZENODO, download_files, download_kaggle
from histoblend.data.sources.pcam import is_unpacked, unpack
from histoblend.pipelines.runtime.screen import Screen


def fetch(dataset: str, folder: Path, *, mirror: str, screen: Screen) -> None:
    """Download or unpack a data set into ``folder``.

    Parameters
    ----------
    dataset : str
        ``pcam``, ``kaggle``, or the path of a zip or tar file that was downloaded by hand.
    folder : Path
    mirror : str
        URL of a folder to download PatchCamelyon from, instead of Zenodo.
    screen : Screen

    Raises
    ------
    InputError
        The data set is unknown or cannot be downloaded.
    """
    if mirror and dataset != "pcam":
        raise InputError(f"a mirror can only be used for DATASET=pcam; got {dataset!r}. Leave out the mirror.")
    if dataset == "pcam":
        _fetch_pcam(folder, mirror, screen)
    elif dataset == "kaggle":
        screen.say(f"kaggle: downloading with Kaggle's client into {folder}, then unpacking")
        screen.say(f"kaggle: {', '.join(download_kaggle(folder))}")
    elif Path(dataset).is_file():
        screen.say(f"unpacking {dataset} into {folder}")
        screen.say(f"unpacked {', '.join(unpack_archive(Path(dataset), folder))}")
    else:
        raise InputError(f"DATASET must be pcam, kaggle or the path of a zip or tar file; got {dataset!r}.")


def _fetch_pcam(folder: Path, mirror: str, screen: Screen) -> None:
    """Download, check and unpack the nine files of PatchCamelyon."""
    screen.say(f"pcam: nine files from {mirror or ZENODO} into {folder}")
    total = sum(file.size for file in PCAM)
    with _megabytes(screen, total // 10**6) as arrived:
        paths = download_files(PCAM, folder, mirror=mirror, progress=lambda _name, count: arrived(count))
    for path in paths:
        if path.suffix == ".gz" and not is_unpacked(path):
            screen.say(f"pcam: unpacking {path.name}")
            unpack(path)
    screen.say(f"pcam: {len(paths)} files in {folder}, all with the published MD5 sums")


def fetch_weights(backbone: str, screen: Screen) -> None:
    """Download the published weights of a network into Keras' folder, and say what they are.

    Parameters
    ----------
    backbone : str
        A name in docs/backbones.md.
    screen : Screen

    Raises
    ------
    InputError
        The name is unknown, or the weights cannot be downloaded.
    """
    from histoblend.features.networks.applications import file_sha256
    from histoblend.features.networks.backbones import find_backbone, locate_weights
    from histoblend.features.networks.backend import DownloadedWeights

    row = find_backbone(backbone)
    weights, size = row.weights, 0
    if isinstance(weights, DownloadedWeights):
        size = weights.megabytes
        terms = "; gated: its terms must be accepted" if weights.gated else ""
        screen.say(f"{backbone}: {weights.url}, licence {weights.licence or 'unknown'}{terms}")
    with _megabytes(screen, size) as arrived:
        path = locate_weights(row, arrived)
    screen.say(f"{backbone}: {path}, {path.stat().st_size / 1e6:.0f} MB, sha256:{file_sha256(path)}")


@contextmanager
def _megabytes(screen: Screen, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of a download, and yield the function to call with each number of bytes."""
    rest = 0  # bytes that do not yet make a full MB
    with screen.progress("downloading", total, "MB") as advance:

        def arrived(count: int) -> None:
            nonlocal rest
            done, rest = divmod(rest + count, 10**6)
            if done:
                advance(done)

        yield arrived
