"""Image files under a folder: which may be patches, and why others are not."""

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

NOT_FOLLOWED = "a link to a parent folder, or to a folder that is already read: not followed"


@dataclass
class ImageFiles:
    """Image files under a folder, links to folders included.

    Attributes
    ----------
    files : set of str
        Files that may be patches, by their path in the folder, with slashes.
    skipped : dict from str to str
        Other files that the user may have meant as patches, and why they are not.
    links : list of str
        Links to folders that were not followed.
    results : dict from str to str
        Earlier results of this program, which are left out: their paths, and what they are.
    """

    files: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)


def is_image(name: str) -> bool:
    """Whether a file is an image by the ending of its name, in any case."""
    return name.lower().endswith(SUFFIXES)


def image_id(name: str) -> str:
    """Name of an image file without folders and without its ending."""
    return stem(posixpath.basename(name))


def walk_images(path: Path, images: ImageFiles) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """List everything under a folder in order, except our own results and folders not named like an image.

    Links to folders are followed unless their target is already read, so no file is read twice and loops end.

    Parameters
    ----------
    path : Path
    images : ImageFiles
        ``links`` and ``results`` are added to it.
    """
    read = [Path(os.path.realpath(path))]

    def enter(name: str, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if any(_is_read(target, other) or other.is_relative_to(target) for other in read):
                images.links.append(name)
                return False
            read.append(target)
        if what := results_in(entry.path):
            images.results[f"{printable(name)}/"] = what
        return not what

    for name, entry in walk(path, enter):
        if is_folder(entry):
            if is_image(name) and f"{printable(name)}/" not in images.results:
                yield name, entry
        elif (not is_image(name) or entry.name.startswith("explain-")) and is_result(entry.path):
            images.results[printable(name)] = "a result of predict"
        else:
            yield name, entry


def _is_read(target: Path, folder: Path) -> bool:
    """Whether reading ``folder`` also reads ``target``: inside it, and not below an ignored folder."""
    return target.is_relative_to(folder) and not ignored_path(target.relative_to(folder))


def image_files(path: Path) -> ImageFiles:
    """Find image files at any depth of a folder."""
    images = ImageFiles()
    for name, entry in walk_images(path, images):
        if is_folder(entry):
            reason = "a folder with the name of an image"
        elif not is_image(name):
            # Tables and notes beside the class folders are not listed, because nobody expects them to be patches.
            reason = f"not an image by its name ({', '.join(SUFFIXES)})" if "/" in name else ""
        elif not os.path.isfile(entry.path):
            reason = "not a file but a pipe, a device or a dead link"
        elif name != printable(name):
            reason = NOT_UTF8
        else:
            images.files.add(name)
            continue
        if reason:
            images.skipped[printable(name)] = reason
    images.skipped |= {printable(name): NOT_FOLLOWED for name in images.links}
    return images
