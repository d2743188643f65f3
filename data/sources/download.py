"""Download of data sets: PatchCamelyon from Zenodo, Kaggle's copy with Kaggle's client."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
    """A published file.

    Attributes
    ----------
    name : str
    md5 : str
    size : int
        Size in bytes, used to check for free disk space; 0 if unknown.
    """

    name: str
    md5: str
    size: int


#: Checksums are from PatchCamelyon's README. Its table swaps those of valid and test (issues 1 and 4 of its
#: repository). Here they belong to the names under which the files are published.
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

#: HTTP status codes after which a retry may succeed.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

#: Bytes per read, and so the most that a lost connection wastes.
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
    """Download missing files, and check all files against their published checksums.

    Parameters
    ----------
    files : tuple of Published
    folder : Path
        Created if it does not exist.
    mirror : str
        URL of a folder to use instead of Zenodo's; the checksums are the same.
    downloader : callable, optional
        Takes the path of the unfinished file and returns the downloader; by default :class:`Resuming`.
    progress : callable, optional
        Called with a file's name and the number of bytes just received, or kept from an unfinished download.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        The disk is too full, the server refuses or does not answer, or a file is not the published one.
    """
    import pooch

    folder.mkdir(parents=True, exist_ok=True)
    _check_room(files, folder)
    pooch.get_logger().setLevel("WARNING")  # we report each file ourselves
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
        except ValueError as error:  # pooch raises this for a wrong checksum, after removing the file
            raise InputError(
                f"{base}/{file.name}: its MD5 checksum must be {file.md5}; got another. The file was damaged or is not "
                "the published one, and was removed. Run again, or use another source (--mirror URL)."
            ) from error
        paths.append(folder / file.name)
    return paths


class Resuming:
    """Downloader for :mod:`pooch` that resumes interrupted downloads, which pooch itself would restart.

    Parameters
    ----------
    part : Path
        Path of the unfinished file, which is kept between runs.
    timeout_s : float
        Seconds without an answer or a byte after which a connection counts as lost.
    tries : int
        Number of consecutive lost connections without any new byte after which it gives up.
    pause_s : float
        Seconds before the next try; doubled after each try without a new byte, up to a minute.
    headers : mapping from str to str, optional
        Further headers of the requests, such as one with a token. Those for authorisation are not sent on to other
        hosts.
    same_version : bool
        Resume only if the ETag shows that the server still offers the same version at the same address; otherwise
        start over. For files without a published digest: nothing else would notice a mixture of two versions.

    Attributes
    ----------
    progress : callable or None
        Called with the number of bytes just received.
    """

    def __init__(
        self,
        part: Path,
        *,
        timeout_s: float = 30.0,
        tries: int = 6,
        pause_s: float = 2.0,
        headers: Mapping[str, str] | None = None,
        same_version: bool = False,
    ) -> None:
        self.part, self.timeout_s, self.tries, self.pause_s = part, timeout_s, tries, pause_s
        self.headers, self.same_version = dict(headers or {}), same_version
        self.origin = part.with_name(f"{part.name}.origin")  # address and ETag of the part
        self.progress: Callable[[int], None] | None = None

    def __call__(self, url: str, output_file: str, _pooch: Any, check_only: bool = False) -> None:
        """Fetch ``url`` into the unfinished file, then move it to where pooch checks it."""
        import requests

        failures, most = 0, self._kept(url)[0]
        if most and self.progress is not None:
            self.progress(most)
        while True:
            try:
                complete, reason = self._fetch(url), ""
            except requests.RequestException as error:
                complete, reason = False, innermost_reason(error)
            if complete:
                break
            # Compared with the most so far, because a download that starts over each time would never give up.
            failures = 0 if self._received() > most else failures + 1
            most = max(most, self._received())
            if failures >= self.tries:
                raise InputError(
                    f"{url}: the download was interrupted {failures} times in a row ({reason or 'it ended early'}). "
                    f"{self._kept(url)[0]} bytes are kept in {self.part}; run again to resume."
                )
            time.sleep(min(self.pause_s * 2**failures, 60.0))
        os.replace(self.part, output_file)
        self.origin.unlink(missing_ok=True)

    def _received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _kept(self, url: str) -> tuple[int, str]:
        """Return the number of bytes that can be resumed, and their ETag, which is empty if it does not matter."""
        if not self.same_version:
            return self._received(), ""
        address, _, tag = self.origin.read_text(encoding="utf-8").partition("\n") if self.origin.exists() else ("",) * 3
        return (self._received(), tag) if tag and address == url else (0, "")

    def _fetch(self, url: str) -> bool:
        """Download over one connection; return whether the file is then complete."""
        import requests

        received, tag = self._kept(url)
        # No compression in transit, because a range counts bytes of the uncompressed file.
        headers = self.headers | {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={received}-"} if received else {}
        headers |= {"If-Range": tag} if received and tag else {}
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout_s) as answer:
            if answer.status_code == 416:
                return self._is_complete(answer, received)
            if answer.status_code not in (200, 206):
                _refuse(answer, url)
            start, total = _span(answer)
            offered = _strong_tag(answer) if self.same_version else ""
            if start == 0 and total is not None and total < received and not offered:
                raise InputError(
                    f"{url}: {received} bytes are already in {self.part}, but the server offers only {total} bytes "
                    "in total, perhaps an error or login page. Open the address in a browser. If the part belongs to "
                    "another file, remove it. Then run again."
                )
            if start not in (0, received):
                raise requests.ConnectionError(f"requested bytes from {received}, got bytes from {start}")
            if start and offered != tag:  # the server ignores If-Range
                self.origin.unlink()
                raise requests.ConnectionError("the server offers another version of the file")
            with self.part.open("r+b" if received and start else "wb") as file:
                file.seek(start)
                if self.same_version and not start:  # the old part is already gone, so its bytes never get this tag
                    self.origin.write_text(f"{url}\n{offered}", encoding="utf-8")
                for piece in answer.iter_content(PIECE):
                    file.write(piece)
                    if self.progress is not None:
                        self.progress(len(piece))
        return total is None or self._received() == total

    def _is_complete(self, answer: requests.Response, received: int) -> bool:
        """Handle status 416, no bytes after these: the file is complete, or it is another file and is removed."""
        if answer.headers.get("Content-Range", "").rpartition("/")[2] == str(received):
            return True
        self.part.unlink()
        return False


def download_kaggle(folder: Path) -> list[str]:
    """Download and unpack the competition's data with Kaggle's client, which holds the user's credentials.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.

    Returns
    -------
    list of str
        Sorted names of the unpacked top-level files and folders.

    Raises
    ------
    InputError
        The client is not installed or fails, or its archive is still damaged after a new download.
    """
    archive = folder / f"{COMPETITION}.zip"
    # The client resumes a partial download. If the result is not a valid archive, the part was damaged: start over.
    for start_over in (False, True):
        if archive.is_file():
            with contextlib.suppress(DamagedArchive):
                return unpack_archive(archive, folder)
        _run_kaggle_client(archive, start_over=start_over or not _begins_as_zip(archive))
    try:
        return unpack_archive(archive, folder)
    except DamagedArchive as error:
        raise InputError(
            f"{error} Kaggle's client downloaded it from the start and the file is still damaged. Check its "
            "content, the disk and the network."
        ) from error


def _run_kaggle_client(archive: Path, *, start_over: bool) -> None:
    """Download the archive with Kaggle's client: resume, or start over."""
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    client = shutil.which("kaggle", path=search_path)
    if client is None:
        incomplete = (
            f"{archive} is incomplete or damaged, and only Kaggle's client can complete it: "
            if archive.exists()
            else ""
        )
        raise InputError(
            f"{incomplete}expected Kaggle's client; it is not installed. Install it "
            f"(`{sys.executable} -m pip install kaggle`), {TOKEN}. Then run again."
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    options = ["--force"] if start_over else []
    command = [client, "competitions", "download", *options, "-p", str(archive.parent), COMPETITION]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    if result.returncode or not archive.is_file():
        raise InputError(
            f"Kaggle's client did not download {archive.name} (status {result.returncode}); see its message above. "
            f"For error 401 or 403: {TOKEN}. Then run again to resume the download."
        )


def _begins_as_zip(archive: Path) -> bool:
    """Whether a download can be resumed: True if there is no file yet, False if it is empty or, say, an error page."""
    if not archive.is_file():
        return True
    with archive.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_room(files: tuple[Published, ...], folder: Path) -> None:
    needed = 0
    for file in files:
        part = folder / f"{file.name}.part"
        if not (folder / file.name).exists():
            needed += max(file.size - (part.stat().st_size if part.exists() else 0), 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free space; got {free / 1e9:.1f} GB. Choose another folder."
        )


def _refuse(answer: requests.Response, url: str) -> None:
    """Raise the right error for an answer without content: ConnectionError to retry, InputError to give up."""
    import requests

    words = f"{answer.status_code} {answer.reason}"
    if answer.status_code in TEMPORARY:
        raise requests.ConnectionError(f"the server answered {words}")
    raise InputError(
        f"{url}: expected a file; the server answered {words}. Check the address, or use another source (--mirror URL)."
    )


def _strong_tag(answer: requests.Response) -> str:
    """ETag of an answer; empty if there is none, or a weak one, which does not stand for the same bytes."""
    tag = answer.headers.get("ETag", "")
    return "" if tag.startswith("W/") else tag


def _span(answer: requests.Response) -> tuple[int, int | None]:
    """Position of an answer's first byte, and the size of the whole file if the server states it."""
    import requests

    if answer.status_code == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdecimal():
        raise requests.ConnectionError(f"the server sent part of a file without its position ({span!r})")
    return int(first), int(total) if total.isdecimal() else None
