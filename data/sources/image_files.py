"""Image files under a folder: which may be patches, and what else is there."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from histoblend.data.ignored import ignored_path
from histoblend.data.sources.file_names import stem
from histoblend.data.sources.images import SUFFIXES
from histoblend.data.sources.labels import NOT_UTF8, printable
from histoblend.data.sources.own_results import is_result, results_in
from histoblend.data.storage.arrays import is_folder, walk

NOT_FOLLOWED = "a link to a folder that holds it, or that is read under another name: not followed"


@dataclass
class ImageFiles:
    """Image files under a folder, links to folders included.

    Attributes
    ----------
    files : set of str
        Those that may be patches, by their path in the folder with slashes.
    skipped : dict from str to str
        What else may have been meant as a patch, and why it is none.
    links : list of str
        Links to folders that were not followed.
    results : dict from str to str
        What this program wrote earlier, which is left out: its path, and what it is.
    """

    files: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)


def is_image(name: str) -> bool:
    """Whether a file is an image by the end of its name, in any case."""
    return name.lower().endswith(SUFFIXES)


def image_id(name: str) -> str:
    """Name of an image file without folders and ending."""
    return stem(posixpath.basename(name))


def walk_images(path: Path, found: ImageFiles) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything under a folder but folders (other than those with the name of an image) and our own results, in order.

    Links to folders are followed where they lead out of what is read already, so that no file is read twice and no
    loop is entered.

    Parameters
    ----------
    path : Path
    found : ImageFiles
        Gets ``links`` and ``results``.
    """
    read = [Path(os.path.realpath(path))]

    def enter(name: str, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if any(_is_read(target, other) or other.is_relative_to(target) for other in read):
                found.links.append(name)
                return False
            read.append(target)
        if what := results_in(entry.path):
            found.results[f"{printable(name)}/"] = what
        return not what

    for name, entry in walk(path, enter):
        if is_folder(entry):
            if is_image(name) and f"{printable(name)}/" not in found.results:
                yield name, entry
        elif (not is_image(name) or entry.name.startswith("explain-")) and is_result(entry.path):
            found.results[printable(name)] = "a result of predict"
        else:
            yield name, entry


def _is_read(target: Path, folder: Path) -> bool:
    """Whether a walk through ``folder`` comes through ``target``, which no ignored folder hides from it."""
    return target.is_relative_to(folder) and not ignored_path(target.relative_to(folder))


def image_files(path: Path) -> ImageFiles:
    """Look for image files at any depth of a folder."""
    found = ImageFiles()
    for name, entry in walk_images(path, found):
        if is_folder(entry):
            reason = "a folder with the name of an image"
        elif not is_image(name):
            # Tables and notes beside the class folders are no patches, and no one expects them to be.
            reason = f"not an image by its name ({', '.join(SUFFIXES)})" if "/" in name else ""
        elif not os.path.isfile(entry.path):
            reason = "not a file but a pipe, a device or a dead link"
        elif name != printable(name):
            reason = NOT_UTF8
        else:
            found.files.add(name)
            continue
        if reason:
            found.skipped[printable(name)] = reason
    found.skipped |= {printable(name): NOT_FOLLOWED for name in found.links}
    return found
