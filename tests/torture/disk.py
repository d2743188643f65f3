"""A simulated disk that refuses one call, and runs in this process that use it."""

import builtins
import errno
import io
import os

from histoblend.pipelines.commands import baseline, one_step
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.runtime.resources import report_shortages
from tests.torture.commands import QUICK, ROOT

RESULTS = ("1-patches/pixels.npy", "1-patches/patches.parquet", "2-features/values.npy", "4-heads/predictions.parquet")
OUTPUTS = ("predictions.parquet", "bundle/heads/xgboost_colour/booster-0.json")


class Disk:
    """Counts calls that write to a folder, and refuses one of them, like a full disk."""

    def __init__(self, monkeypatch, folder, refused=None, number=errno.ENOSPC):
        self.folder, self.refused, self.number, self.calls = str(folder), refused, number, 0
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

        def watched(target, *more, **options):
            if isinstance(target, int) or str(target).startswith(self.folder):
                self.count(target)
            return real(target, *more, **options)

        monkeypatch.setattr(module, name, watched)

    def count(self, target):
        self.calls += 1
        if self.calls == self.refused:
            raise OSError(self.number, os.strerror(self.number), None if isinstance(target, int) else str(target))


def run_in(runs, settings=None, *, rebuild=False):
    """A run on data that need seconds. `settings` override QUICK."""
    words = [f"{key}={value!r}" for key, value in {**QUICK, **(settings or {})}.items()]
    return plan_run(load_config(ROOT / "configs" / "phantom.toml", [*words, "name=one"]), runs, rebuild=rebuild)


def heads(runs, *, rebuild=False):
    """Run the steps up to the heads; return the content of the files that must not change."""
    run = run_in(runs, rebuild=rebuild)
    with report_shortages(run.folder):
        one_step(run, "heads")
    return {name: (run.folder / name).read_bytes() for name in RESULTS}


def whole_baseline(runs):
    """Run all of `make baseline`; return the content of the files that must not change."""
    run = run_in(runs)
    with report_shortages(run.folder):
        baseline(run)
    return {name: (run.folder / name).read_bytes() for name in (*RESULTS, *OUTPUTS)}
