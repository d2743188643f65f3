"""The command line in a separate process that has already loaded the libraries, which takes longer than a small run.

Such processes are forked from one that loads the libraries once. Tests of the start of a process use `subprocess`.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests import ROOT

LOADED = [
    "histoblend.pipelines.__main__", "histoblend.pipelines.commands", "histoblend.features.extract",
    "histoblend.features.handcrafted.families", "histoblend.pipelines.engine.fits",
    "histoblend.models.heads.logistic", "histoblend.models.heads.boosted", "histoblend.data.audit.duplicates",
    "histoblend.data.audit.measures", "histoblend.data.sources.images", "pyarrow.parquet", "skops.io", "xgboost",
]  # fmt: skip


def run_command(*arguments, largest=None):
    """Run ``histoblend`` with these arguments in the checkout; return what `subprocess.run` would.

    `largest` limits the size of the files that it writes, in bytes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    writers = [writer for _, writer in pipes]
    words = list(map(str, arguments))
    process = context.Process(target=_run, args=(words, dict(os.environ), largest, *writers))
    process.start()
    for writer in writers:
        writer.close()
    with ThreadPoolExecutor(2) as pool:
        out, said = pool.map(_read, (reader for reader, _ in pipes))
    process.join()
    return subprocess.CompletedProcess(words, process.exitcode, out, said)


def _read(pipe):
    with pipe, open(pipe.fileno(), encoding="utf-8", closefd=False) as file:
        return file.read()


def _run(words, environment, largest, *writers):
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, writer in enumerate(writers, 1):
        os.dup2(writer.fileno(), number)
        writer.close()
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["histoblend", *words]
    from histoblend.pipelines.__main__ import main

    main()
