"""Data sets from where they were published: PatchCamelyon from Zenodo, Kaggle's copy through Kaggle's client."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.errors import InputError, innermost_reason
from histoblend.data.sources.archives import DamagedArchive, unpack_archive
from histoblend.data.sources.pcam import PREFIX

if TYPE_CHECKING:
    import requests

ZENODO = "https://zenodo.org/records/2546921/files"

COMPETITION = "histopathologic-cancer-detection"


@dataclass(frozen=True)
class Published:
    """A file as published.

    Attributes
    ----------
    name : str
    md5 : str
    size : int
        Bytes, to see beforehand whether they fit; 0 where nobody wrote it down.
    """

    name: str
    md5: str
    size: int


#: Sums are from PatchCamelyon's README, whose table gives those of valid to test and the other way round (issues 1
#: and 4 of its repository); here they stand by the names under which the files are published.
PCAM: tuple[Published, ...] = (
    Published(f"{PREFIX}train_x.h5.gz", "1571f514728f59376b705fc836ff4b63", 6_421_353_462),
    Published(f"{PREFIX}train_y.h5.gz", "35c2d7259d906cfc8143347bb8e05be7", 21_378),
    Published(f"{PREFIX}train_meta.csv", "5a3dd671e465cfd74b5b822125e65b0a", 0),
    Published(f"{PREFIX}valid_x.h5.gz", "d5b63470df7cfa627aeec8b9dc0c066e", 805_965_320),
    Published(f"{PREFIX}valid_y.h5.gz", "2b85f58b927af9964a4c15b8f7e8f179", 3_038),
    Published(f"{PREFIX}valid_meta.csv", "67589e00a4a37ec317f2d1932c7502ca", 0),
    Published(f"{PREFIX}test_x.h5.gz", "d8c2d60d490dbd479f8199bdfa0cf6ec", 800_875_929),
    Published(f"{PREFIX}test_y.h5.gz", "60a7035772fbdb7f34eb86d4420cf66a", 3_040),
    Published(f"{PREFIX}test_meta.csv", "3455fd69135b66734e1008f3af684566", 0),
)

#: Answers that may be others a moment later.
PASSING = (408, 425, 429, 500, 502, 503, 504)

#: Bytes read at a time: what a broken connection loses at most.
PIECE = 2**16

TOKEN = (
    "get a token at https://www.kaggle.com/settings/api (or run `kaggle auth login`) and accept the rules at "
    f"https://www.kaggle.com/c/{COMPETITION}/rules"
)


def download_files(
    files: tuple[Published, ...],
    folder: Path,
    *,
    mirror: str = "",
    downloader: Callable[[Path], Resuming] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[Path]:
    """Download files that are not there yet, and check all of them against their published sums.

    Parameters
    ----------
    files : tuple of Published
    folder : Path
        Made where it is missing.
    mirror : str
        Folder URL to use instead of Zenodo's; the same sums hold.
    downloader : callable, optional
        Path of the unfinished file to the downloader; :class:`Resuming` with its defaults otherwise.
    progress : callable, optional
        Called with a file's name and the number of its bytes just arrived (or found unfinished).

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        No room, the server refuses or stays silent, or a file is not the one published.
    """
    import pooch

    folder.mkdir(parents=True, exist_ok=True)
    _check_room(files, folder)
    pooch.get_logger().setLevel("WARNING")  # what it says at every file, we say ourselves
    base = (mirror or ZENODO).rstrip("/")
    paths = []
    for file in files:
        part = folder / f"{file.name}.part"
        fetch = downloader(part) if downloader else Resuming(part)
        if progress is not None:
            fetch.progress = lambda count, name=file.name: progress(name, count)
        try:
            pooch.retrieve(f"{base}/{file.name}", f"md5:{file.md5}", file.name, folder, downloader=fetch)
        except InputError:
            raise
        except ValueError as error:  # pooch's word for another checksum; it has removed the file
            raise InputError(
                f"{base}/{file.name}: its MD5 sum must be {file.md5}; got another. It was damaged on the way or is not "
                "the published file, and was removed. Run again, or take it from elsewhere (--mirror URL)."
            ) from error
        paths.append(folder / file.name)
    return paths


class Resuming:
    """Downloads for :mod:`pooch` that go on where they broke off; pooch's own starts over.

    Parameters
    ----------
    part : Path
        Where the unfinished file lies, also between two runs.
    timeout_s : float
        Seconds without an answer, or a byte, after which a connection counts as broken.
    tries : int
        Broken connections in a row, without a byte between them, after which it gives up.
    pause_s : float
        Seconds before the next try; doubled with every one in a row that brings nothing, up to a minute.

    Attributes
    ----------
    progress : callable or None
        Called with the number of bytes just arrived.
    """

    def __init__(self, part: Path, *, timeout_s: float = 30.0, tries: int = 6, pause_s: float = 2.0) -> None:
        self.part, self.timeout_s, self.tries, self.pause_s = part, timeout_s, tries, pause_s
        self.progress: Callable[[int], None] | None = None

    def __call__(self, url: str, output_file: str, _pooch: Any, check_only: bool = False) -> None:
        """Fetch ``url`` into the unfinished file, and put it where pooch wants to check it."""
        import requests

        failures, found = 0, self._have()
        if found and self.progress is not None:
            self.progress(found)
        while True:
            before = self._have()
            try:
                whole, reason = self._fetch(url), ""
            except requests.RequestException as error:
                whole, reason = False, innermost_reason(error)
            if whole:
                break
            failures = 0 if self._have() > before else failures + 1
            if failures >= self.tries:
                raise InputError(
                    f"{url}: the download broke off {failures} times in a row ({reason or 'it ended early'}). "
                    f"{self._have()} bytes are kept in {self.part}; run again to go on."
                )
            time.sleep(min(self.pause_s * 2**failures, 60.0))
        os.replace(self.part, output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self, url: str) -> bool:
        """One connection; whether the file is whole after it."""
        import requests

        have = self._have()
        # Not compressed on the way: a range is one of the file's own bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout_s) as answer:
            if answer.status_code == 416:
                return self._is_all(answer, have)
            if answer.status_code not in (200, 206):
                _refuse(answer, url)
            start, total = _span(answer)
            if start == 0 and total is not None and total < have:
                raise InputError(
                    f"{url}: expected the rest of a file of which {have} bytes are in {self.part}; the server offers "
                    f"{total} bytes in all, perhaps a page about an error or a login. Open the address in a browser; "
                    "if the part is of another file, remove it. Then run again."
                )
            if start not in (0, have):
                raise requests.ConnectionError(f"asked for byte {have} on, got byte {start} on")
            with self.part.open("r+b" if have and start else "wb") as file:
                file.seek(start)
                for piece in answer.iter_content(PIECE):
                    file.write(piece)
                    if self.progress is not None:
                        self.progress(len(piece))
        return total is None or self._have() == total

    def _is_all(self, answer: requests.Response, have: int) -> bool:
        """Judge the answer that there is nothing beyond: either all is here, or what is here is another file's."""
        if answer.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return True
        self.part.unlink()
        return False


def download_kaggle(folder: Path) -> list[str]:
    """Download and unpack the competition's data through Kaggle's own client, which knows the user.

    Parameters
    ----------
    folder : Path
        Made where it is missing.

    Returns
    -------
    list of str
        What now lies in ``folder``.

    Raises
    ------
    InputError
        The client is not installed or does not deliver, or its archive is damaged although it was downloaded anew.
    """
    archive = folder / f"{COMPETITION}.zip"
    # The client resumes a part. If that gives no whole archive, the part itself was damaged: start over.
    for start_over in (False, True):
        if archive.is_file():
            with contextlib.suppress(DamagedArchive):
                return unpack_archive(archive, folder)
        _run_kaggle_client(archive, start_over=start_over or not _begins_as_zip(archive))
    try:
        return unpack_archive(archive, folder)
    except DamagedArchive as error:
        raise InputError(
            f"{error} Kaggle's client downloaded it from the start and the file is still damaged: look at what it "
            "holds, and at the disk and the network."
        ) from error


def _run_kaggle_client(archive: Path, *, start_over: bool) -> None:
    """Have Kaggle's client download the archive: what is missing of it or, to start over, all of it."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    client = shutil.which("kaggle", path=places)
    if client is None:
        left = (
            f"{archive} is incomplete or damaged, and only Kaggle's client can complete it: "
            if archive.exists()
            else ""
        )
        raise InputError(
            f"{left}expected Kaggle's own client; it is not installed. Install it "
            f"(`{sys.executable} -m pip install kaggle`), {TOKEN}. Then run again."
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    options = ["--force"] if start_over else []
    command = [client, "competitions", "download", *options, "-p", str(archive.parent), COMPETITION]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    if done.returncode or not archive.is_file():
        raise InputError(
            f"Kaggle's client gave no {archive.name} (status {done.returncode}); see its own message above. "
            f"If it speaks of 401 or 403: {TOKEN}. Then run again: it resumes the download."
        )


def _begins_as_zip(archive: Path) -> bool:
    """Whether a file can be resumed: not one that is empty or holds, say, an error page. True where there is none."""
    if not archive.is_file():
        return True
    with archive.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_room(files: tuple[Published, ...], folder: Path) -> None:
    lacking = 0
    for file in files:
        part = folder / f"{file.name}.part"
        if not (folder / file.name).exists():
            lacking += max(file.size - (part.stat().st_size if part.exists() else 0), 0)
    free = shutil.disk_usage(folder).free
    if lacking > free:
        raise InputError(
            f"{folder}: expected room for {lacking / 1e9:.1f} GB; got {free / 1e9:.1f} GB. Choose another folder."
        )


def _refuse(answer: requests.Response, url: str) -> None:
    """Raise what an answer without content means: try again, or give up."""
    import requests

    words = f"{answer.status_code} {answer.reason}"
    if answer.status_code in PASSING:
        raise requests.ConnectionError(f"the server answered {words}")
    raise InputError(
        f"{url}: expected a file; the server answered {words}. Check the address, or take it from elsewhere "
        "(--mirror URL)."
    )


def _span(answer: requests.Response) -> tuple[int, int | None]:
    """First byte of an answer and the size of the whole file, where it is said."""
    import requests

    if answer.status_code == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdecimal():
        raise requests.ConnectionError(f"a part of a file without saying which ({span!r})")
    return int(first), int(total) if total.isdecimal() else None
