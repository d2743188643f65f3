"""Data sets brought into a folder: downloaded, checked and unpacked."""

from __future__ import annotations

from pathlib import Path

from histoblend.data.errors import InputError
from histoblend.data.sources.archives import unpack_archive
from histoblend.data.sources.download import PCAM, ZENODO, download_files, download_kaggle
from histoblend.data.sources.pcam import is_unpacked, unpack
from histoblend.pipelines.runtime.screen import Screen


def fetch(dataset: str, folder: Path, *, mirror: str, screen: Screen) -> None:
    """Bring a data set into ``folder``.

    Parameters
    ----------
    dataset : str
        ``pcam``, ``kaggle``, or the path of a zip or tar file that was downloaded by hand.
    folder : Path
    mirror : str
        Folder URL to download PatchCamelyon from, instead of Zenodo's.
    screen : Screen

    Raises
    ------
    InputError
        No such data set, or it cannot be had.
    """
    if mirror and dataset != "pcam":
        raise InputError(f"a mirror serves DATASET=pcam only; got {dataset!r}. Leave it out.")
    if dataset == "pcam":
        _fetch_pcam(folder, mirror, screen)
    elif dataset == "kaggle":
        screen.say(f"kaggle: through Kaggle's own client into {folder}, then unpacked")
        screen.say(f"kaggle: {', '.join(download_kaggle(folder))}")
    elif Path(dataset).is_file():
        screen.say(f"unpacking {dataset} into {folder}")
        screen.say(f"unpacked {', '.join(unpack_archive(Path(dataset), folder))}")
    else:
        raise InputError(f"DATASET must be pcam, kaggle or the path of a zip or tar file; got {dataset!r}.")


def _fetch_pcam(folder: Path, mirror: str, screen: Screen) -> None:
    """Download PatchCamelyon's nine files, check and unpack them."""
    screen.say(f"pcam: nine files from {mirror or ZENODO} into {folder}")
    total = sum(file.size for file in PCAM)
    rest = 0
    with screen.progress("downloading", total // 10**6, "MB") as advance:

        def arrived(_name: str, count: int) -> None:
            nonlocal rest
            done, rest = divmod(rest + count, 10**6)
            if done:
                advance(done)

        paths = download_files(PCAM, folder, mirror=mirror, progress=arrived)
    for path in paths:
        if path.suffix == ".gz" and not is_unpacked(path):
            screen.say(f"pcam: unpacking {path.name}")
            unpack(path)
    screen.say(f"pcam: {len(paths)} files in {folder}, each with its published MD5 sum")
