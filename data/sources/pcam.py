"""PatchCamelyon as published: ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`` and ``…_meta.csv``."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.sources.csv_table import read_csv
from histoblend.data.storage.arrays import find_name, stamp
from histoblend.data.storage.expansion import UnpackedFile

SPLITS = ("train", "valid", "test")
PREFIX = "camelyonpatch_level_2_split_"

#: More than deflate can expand a byte. A data set that claims more contains pixels that were never stored.
MAX_PER_BYTE = 1100

#: Size of the HDF5 chunk cache in bytes, so that a row range ending inside a chunk does not read it twice.
CHUNK_CACHE_BYTES = 64 * 2**20


class PcamSource:
    """Patches of the published HDF5 files, with their official splits.

    Parameters
    ----------
    path : Path
        Folder that holds ``camelyonpatch_level_2_split_<split>_x.h5`` (dataset ``x``, (n, size, size, 3) uint8) and
        ``…_y.h5`` (dataset ``y``, (n, 1, 1, 1), 0 or 1) of one or more of the splits train, valid and test. If only
        ``.h5.gz`` exists, it is unpacked once into the same folder. ``…_meta.csv`` (column ``wsi``) names the slides;
        either all of these splits have one or none has.
    size : int
        Height and width of a patch in pixels.

    Attributes
    ----------
    table : DataFrame
        ``patch_id`` (split and row, such as ``train-000123``), ``label``, ``slide`` (missing without ``…_meta.csv``),
        and ``official`` (train, valid or test). Splits must respect ``official``: the folds use train and valid
        together, and test is the test set.
    notes : dict
        Number of patches per official split.

    Raises
    ------
    InputError
        A file is missing, damaged or has another shape, lengths differ, or a label is not 0 or 1.
    """

    def __init__(self, path: Path, *, size: int = 96) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: expected the folder that holds {PREFIX}train_x.h5; got no folder. Give DATA=….")
        self.size = size
        splits = [split for split in SPLITS if _find(path, split, "x") or _find(path, split, "y")]
        if not splits:
            raise InputError(
                f"{path}: expected {PREFIX}train_x.h5 and …_y.h5, or valid or test (also .gz); found none. "
                f"Download them with `make data DATASET=pcam DATA={path}`."
            )
        with_slides = [split for split in splits if find_name(path, f"{PREFIX}{split}_meta.csv").exists()]
        if with_slides and with_slides != splits:
            missing = next(split for split in splits if split not in with_slides)
            raise InputError(
                f"{path}: expected {PREFIX}{missing}_meta.csv beside those of {', '.join(with_slides)}; it does not "
                "exist. Add it, or remove that split or all meta files."
            )
        self._pixels = {split: _open(path, split, "x") for split in splits}
        tables = [self._table(path, split, bool(with_slides)) for split in splits]
        self.table = pd.concat(tables, ignore_index=True)
        self.notes: dict[str, Any] = {"official": {split: len(self._pixels[split]) for split in splits}}

    def _table(self, path: Path, split: str, with_slides: bool) -> pd.DataFrame:
        """Build the table of one split, and check the shape of its pixels."""
        pixels, labels = self._pixels[split], _labels(path, split)
        name = f"{PREFIX}{split}"
        expected = (len(labels), self.size, self.size, 3)
        if pixels.shape[:1] != labels.shape:
            raise InputError(
                f"{name}: x and y must hold the same number of patches; got {len(pixels)} and {len(labels)}. "
                "Download both again."
            )
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise InputError(
                f"{name}_x.h5: x must be {' × '.join(map(str, expected))} uint8; got "
                f"{' × '.join(map(str, pixels.shape))} {pixels.dtype}. For patches of another size, set data.size."
            )
        slides = pd.Series(pd.NA, range(len(labels)))
        if with_slides:
            meta = find_name(path, f"{name}_meta.csv")
            slides = read_csv(meta, ("wsi",))["wsi"].reset_index(drop=True)
            if len(slides) != len(labels) or (slides == "").any():
                raise InputError(
                    f"{meta}: expected {len(labels)} rows with a slide each; got {len(slides)} rows, "
                    f"{int((slides == '').sum())} of them without a slide. Download it again."
                )
        ids = [f"{split}-{row:06d}" for row in range(len(labels))]
        table = pd.DataFrame({"patch_id": ids, "label": labels, "slide": slides, "official": split})
        return table.astype({"slide": "string", "official": "string"})

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Read rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        parts: list[np.ndarray] = []
        reasons: dict[int, str] = {}
        first = 0
        for dataset in self._pixels.values():
            low, high = max(start - first, 0), min(stop - first, len(dataset))
            if low < high:
                pixels, unreadable = _rows(dataset, low, high)
                reasons |= {row + first + low - start: reason for row, reason in unreadable.items()}
                parts.append(pixels)
            first += len(dataset)
        return np.concatenate(parts) if len(parts) > 1 else parts[0], reasons


def content(path: Path, **_options: object) -> Iterator[str]:
    """Yield lines that change when the files change; see :class:`data.sources.registry.SourceKind`.

    A packed and the unpacked file give the same line, because unpacking keeps the modification time, as gunzip does.
    """
    for split in SPLITS:
        for part in ("x", "y"):
            file = _find(path, split, part)
            if file is not None:
                name, _, changed = stamp(file, f"{split}_{part}").split("\0")
                yield f"{name}\0{changed}"


def is_unpacked(packed: Path) -> bool:
    """Whether the unpacked file exists beside a ``.gz`` and is complete; another program may have been interrupted."""
    target = packed.with_suffix("")
    if not target.exists():
        return False
    with packed.open("rb") as file:
        file.seek(max(packed.stat().st_size - 4, 0))
        size = int.from_bytes(file.read(4), "little")  # gzip ends with the size modulo 2^32
    return target.stat().st_size % 2**32 == size


def unpack(packed: Path) -> Path:
    """Unpack a ``.gz`` into its folder unless already done; atomic, and keeps the modification time.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        The file is damaged, or the unpacked file cannot be written.
    """
    target = packed.with_suffix("")
    if is_unpacked(packed):
        return target
    partial = packed.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with packed.open("rb") as raw, partial.open("wb") as sink:
            source = UnpackedFile(str(packed), raw)
            if not source.compressed:
                raise BadGzipFile("not a gzipped file")
            shutil.copyfileobj(source, sink, 2**20)
            sink.flush()
            os.fsync(sink.fileno())
        status = packed.stat()
        os.utime(partial, ns=(status.st_atime_ns, status.st_mtime_ns))
        partial.replace(target)
    except (BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{packed}: expected a complete gzip file; got: {error}. Download it again.") from error
    except OSError as error:
        raise InputError(
            f"{packed}: cannot be unpacked: {error.strerror or error}. "
            f"Unpack it into a folder with enough space: gunzip -c {packed.name} > …/{target.name}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _find(path: Path, split: str, part: str) -> Path | None:
    """Path of the file of one split and part, plain or else packed; None if there is none."""
    names = (f"{PREFIX}{split}_{part}.h5", f"{PREFIX}{split}_{part}.h5.gz")
    return next((file for file in (find_name(path, name) for name in names) if file.is_file()), None)


def _open(path: Path, split: str, part: str) -> Any:
    """Open the dataset of one file; the file stays open."""
    import h5py

    file = _find(path, split, part)
    if file is None:
        raise InputError(
            f"{path / PREFIX}{split}_{part}.h5: expected together with the split's other file; it does not exist "
            f"(nor as .gz). Download it with `make data DATASET=pcam DATA={path}`."
        )
    file = unpack(file) if file.suffix.lower() == ".gz" else file
    try:
        opened = h5py.File(file, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
        # Links and virtual or external datasets could read any other file of the machine.
        dataset = opened[part] if isinstance(opened.get(part, getlink=True), h5py.HardLink) else None
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{file}: expected an HDF5 file; got: {error}. Download it again.") from error
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise InputError(f"{file}: expected it to contain a dataset {part!r}; got {sorted(opened)}. Download it again.")
    stored = dataset.id.get_storage_size()
    if dataset.ndim < 1 or dataset.nbytes > stored * MAX_PER_BYTE:
        raise InputError(
            f"{file}: expected a dataset {part!r} of stored values; got {dataset.nbytes} bytes of which only "
            f"{stored} are stored. Download it again."
        )
    return dataset


def _labels(path: Path, split: str) -> np.ndarray:
    """Labels of one split.

    Returns
    -------
    ndarray of shape (n,), dtype int8
    """
    dataset = _open(path, split, "y")
    name = f"{PREFIX}{split}_y.h5"
    if dataset.size != len(dataset) or dataset.dtype.kind not in "iub":
        shape = " × ".join(map(str, dataset.shape))
        raise InputError(f"{name}: y must hold one integer per patch; got {shape} {dataset.dtype}.")
    try:
        labels = dataset[()].reshape(-1)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: labels could not be read: {error}. Download it again.") from error
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise InputError(
            f"{name}: labels must be 0 or 1; got {labels[wrong[0]]} for row {wrong[0]} and {len(wrong) - 1} more."
        )
    return np.asarray(labels, np.int8)


def _rows(dataset: Any, low: int, high: int) -> tuple[np.ndarray, dict[int, str]]:
    """Read rows; if the file is damaged there, read them one by one, so that only damaged rows are lost."""
    try:
        return dataset[low:high], {}
    except (OSError, RuntimeError):
        pixels = np.zeros((high - low, *dataset.shape[1:]), np.uint8)
    reasons = {}
    for row in range(low, high):
        try:
            pixels[row - low] = dataset[row]
        except (OSError, RuntimeError) as error:
            reasons[row - low] = f"not readable in {Path(dataset.file.filename).name} ({error})"
    return pixels, reasons
