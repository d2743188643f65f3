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


class Command:
    """``histoblend`` with these arguments in the checkout; used like `subprocess.Popen`, with output as text.

    `largest` limits the size of the files that it writes, in bytes.
    """

    def __init__(self, *arguments, largest=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        self.args, writers = list(map(str, arguments)), [writer for _, writer in pipes]
        self._process = context.Process(target=_run, args=(self.args, dict(os.environ), largest, *writers))
        self._process.start()
        self.pid, self.kill, self.returncode = self._process.pid, self._process.kill, None
        for writer in writers:
            writer.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno()), encoding="utf-8") for reader, _ in pipes)
        for reader, _ in pipes:
            reader.close()

    def communicate(self):
        """Wait for the end; return what it wrote to standard output and standard error."""
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            said = tuple(pool.map(lambda file: file.read(), (self.stdout, self.stderr)))
        self._process.join()
        self.returncode = self._process.exitcode
        self._process.close()
        return said


def run_command(*arguments, largest=None):
    """Run ``histoblend`` like `subprocess.run`."""
    command = Command(*arguments, largest=largest)
    out, said = command.communicate()
    return subprocess.CompletedProcess(command.args, command.returncode, out, said)


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
