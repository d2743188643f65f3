"""Fuzzes the readers of CSV files: labels of both layouts, and slide maps."""

import contextlib
import tempfile
from pathlib import Path

import pandas as pd

from tests.torture.fuzz.driver import instrumented, main

with instrumented():
    from histoblend.data.errors import InputError
    from histoblend.data.sources.folder import LABELS, FolderSource
    from histoblend.data.sources.kaggle import _read_labels
    from histoblend.data.sources.labels import slides_of

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-files-"))
for name in ("a/1.png", "a/2.png", "b/3.png"):
    (FOLDER / name).parent.mkdir(exist_ok=True)
    (FOLDER / name).touch()


def seeds() -> list[bytes]:
    files = "a/1.png,0,S1\na/2.png,0,S1\nb/3.png,1,S2\n"
    return [
        f"file,label,slide\n{files}".encode(),
        b"file,label\n./a//1.png,normal\na/2.png,normal\nb/3.png,tumour\n",
        b"id,label\na/1.png,0\nb/3.png,1\n",
        b'label,id\r\n0,"a/1.png"\r\n1,"b""3"\r\n',
        b"id,wsi\na/1.png,S1\na/2.png,S2\n",
        b"\xef\xbb\xbf Slide_ID ,File\nS1,a/1.png\n,\n",
        b"sep=;\r\nId;LABEL;Slide\r\nb\\1.TIF;1.0;S1\xc2\xa0\r\n",
        "file\tlabel\n1\tTrue\n".encode("utf-16"),
    ]


def read(content: bytes) -> None:
    (FOLDER / LABELS).write_bytes(content)
    ids = pd.Series(["a/1.png", "a/2.png", "b/3.png"])
    readers = (
        lambda: FolderSource(FOLDER, missing="skip"),
        lambda: FolderSource(FOLDER, positive=("1",)),
        lambda: _read_labels(FOLDER / LABELS),
        lambda: slides_of(ids, FOLDER / LABELS),
        lambda: slides_of(pd.Series(["1", "2"]), FOLDER / LABELS),
    )
    for reader in readers:
        with contextlib.suppress(InputError):
            reader()


if __name__ == "__main__":
    main("tests.torture.fuzz.tables", read, seeds)
