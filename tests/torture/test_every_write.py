"""The disk refuses each file in turn, at each moment of its writing: one error, nothing half-written, same result."""

import builtins
import errno
import io
import os
from pathlib import Path

import pytest

from data.errors import InputError
from pipelines.baseline import Run, one_step
from pipelines.config import load_config
from pipelines.failing import foreseen
from tests.torture.commands import QUICK, ROOT

pytestmark = pytest.mark.torture
RESULTS = ("1-patches/pixels.npy", "1-patches/patches.parquet", "2-features/values.npy", "4-heads/predictions.parquet")


class Disk:
    """Counts what would change a folder's disk, and refuses one such call, as a full disk does."""

    def __init__(self, monkeypatch, folder, refused=None):
        self.folder, self.refused, self.calls = str(folder), refused, 0
        for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir")):
            self._watch(monkeypatch, module, name)
        opened = io.open

        def open_(file, mode="r", *more, **options):
            if set(mode) & set("wax+") and str(file).startswith(self.folder):
                self.count(file)
            return opened(file, mode, *more, **options)

        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(io, "open", open_)

    def _watch(self, monkeypatch, module, name):
        real = getattr(module, name)

        def watched(place, *more, **options):
            if isinstance(place, int) or str(place).startswith(self.folder):
                self.count(place)
            return real(place, *more, **options)

        monkeypatch.setattr(module, name, watched)

    def count(self, place):
        self.calls += 1
        if self.calls == self.refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), None if isinstance(place, int) else str(place))


def heads(runs):
    settings = [f"{key}={value!r}" for key, value in QUICK.items()]
    run = Run(load_config(ROOT / "configs" / "phantom.toml", [*settings, "name=one"]), runs)
    with foreseen(run.folder):
        one_step(run, "heads")
    return {name: (run.folder / name).read_bytes() for name in RESULTS}


def test_a_disk_full_at_any_call_is_told_and_gone_on_from(tmp_path, faults, at_length):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path)
        expected = heads(tmp_path / "whole")
        calls = disk.calls
    assert calls > 40
    refused = range(1, calls + 1, 1 if at_length else 40)
    told = 0
    for number in refused:
        runs = tmp_path / f"refused-{number}"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, tmp_path, number)
            try:
                found = heads(runs)
            except InputError as error:
                told += 1
                said = str(error)
                assert "no space is left" in said
            else:
                # A folder's list of names that could not be brought to the disk: whole files matter more.
                assert found == expected
            assert disk.calls >= number, "nothing was refused"
        assert heads(runs) == expected
        assert list(Path(runs).rglob("*.partial")) == []
    assert told > len(refused) / 2
    faults("each call in turn that writes refused: no space left", len(refused), len(refused),
           f"error: {said}".replace(str(tmp_path), "runs"))  # fmt: skip
