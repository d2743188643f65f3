"""Fuzzes the reader of configurations: a TOML file, and after form feeds ``--set key=value``."""

import tempfile
from pathlib import Path

from tests.torture.fuzz.driver import ROOT, instrumented, main

with instrumented():
    from histoblend.pipelines.config import Config, describe
    from histoblend.pipelines.config_files import load_config

FILE = Path(tempfile.mkdtemp(prefix="fuzz-files-"), "c.toml")


def seeds() -> list[bytes]:
    shipped = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.toml"))]
    whole = "\n".join(line for line in describe(Config()))
    lines = [line.partition("  #")[0] for line in whole.splitlines()]
    return [
        *shipped,
        "\n".join(lines).encode(),
        b"seed = 1\fdata.n=200\fname=x\ftrack=mlflow",
        b"[data]\npositive=['a']\f=\fa.b.c=1\fembeddings.size=[96,192]",
    ]


def read(content: bytes) -> None:
    file, *given = content.split(b"\f")
    FILE.write_bytes(file)
    config = load_config(FILE, [text.decode(errors="surrogateescape") for text in given])
    assert config.name not in ("", ".", "..")
    assert "/" not in config.name


if __name__ == "__main__":
    main("tests.torture.fuzz.settings", read, seeds)
