"""A Dask cluster as the engine of a run: connect to it, send it the code, and run tasks on it."""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from histoblend.data.errors import InputError
from histoblend.data.storage.store import Store
from histoblend.pipelines.config import EngineConfig
from histoblend.pipelines.runtime.provenance import code_digest, source_files
from histoblend.pipelines.runtime.screen import Screen

#: Files and packages that workers need.
PACKAGES = ("__init__.py", "data", "features", "models", "reports", "pipelines")

#: Time limits in seconds: for an answer from the scheduler, and for the first worker to connect.
ANSWER_S = 20
FIRST_WORKER_S = 120

#: A function and its arguments. All tasks of one :meth:`Cluster.run` call the same function.
Task = tuple[Callable[..., Any], tuple[Any, ...]]


class Cluster:
    """Workers of a Dask cluster. The connection is opened when it is first needed.

    Parameters
    ----------
    engine : EngineConfig
        Its ``scheduler`` must not be "local".
    run : Path
        Folder of the run. It is also the store if ``engine.store`` is empty.
    workers : int
        Number of workers to start if the cluster runs on this machine.
    screen : Screen
    """

    def __init__(self, engine: EngineConfig, run: Path, workers: int, screen: Screen) -> None:
        self.engine, self.run_folder, self.workers, self.screen = engine, run.resolve(), workers, screen
        self._closing = contextlib.ExitStack()

    @cached_property
    def client(self) -> Any:
        """The connection. InputError if there is no scheduler or worker, or if a worker cannot work for this run."""
        distributed = _import_distributed()
        # Lost workers are reported in one line of our own, without Dask's log.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        client = self._closing.enter_context(self._connect(distributed))
        workers = self._count_workers(client)
        services = client.scheduler_info(n_workers=0)["services"]
        dashboard = f", dashboard {client.dashboard_link}" if "dashboard" in services else ""
        self.screen.say(f"cluster: {workers} at {client.scheduler.address}{dashboard}")
        self._ship_code(client, distributed)
        self._check_store(client)
        return client

    def connect(self) -> None:
        """Connect if there is no connection yet; see :attr:`client`."""
        self.client  # noqa: B018 - the cached property connects on first access

    @cached_property
    def store(self) -> Store:
        """Store from which the workers read this run's data."""
        return (
            Store(self.engine.store).inside(self.run_folder.name) if self.engine.store else Store(str(self.run_folder))
        )

    def run(self, tasks: Sequence[Task], *, ordered: bool = False) -> Iterator[Any]:
        """Run tasks on the workers and yield their results.

        If a worker is lost, its task runs again on another worker.

        Parameters
        ----------
        tasks : sequence of (function, arguments)
            Functions are defined at module level; arguments are as for :meth:`spread`. Arguments and results must be
            small because they pass through the scheduler.
        ordered : bool
            Whether to yield results in the order of the tasks. Otherwise they come as they finish.

        Raises
        ------
        InputError
            The same task killed several workers, or the connection to the scheduler was lost.
        """
        from distributed import as_completed

        if not tasks:
            return
        function = tasks[0][0]
        # Submitted together, so that workers that connect later get tasks too.
        futures = self.spread(
            function.__module__, function.__name__, *zip(*(arguments for _, arguments in tasks), strict=True)
        )
        with explained():
            if ordered:
                yield from (future.result() for future in futures)
                return
            for future in as_completed(futures, loop=self.client.loop):
                yield future.result()
                future.release()

    def spread(self, module: str, name: str, *arguments: Sequence[Any]) -> list[Any]:
        """Call a function on the workers once per set of arguments; return the futures.

        Parameters
        ----------
        module, name : str
            Module and name of the function.
        *arguments : sequence
            Sequences of equal length, as for :func:`map`, of plain values, arrays or futures. The scheduler reads them
            without our code, so they must not contain classes of this package.
        """
        count = len(arguments[0])
        # The name is for the dashboard; the random suffix makes the key unique.
        label = f"{name}-{secrets.token_hex(4)}"
        return list(self.client.map(_by_name(), [module] * count, [name] * count, *arguments, pure=False, key=label))

    def threads(self) -> int:
        """Number of threads of all connected workers."""
        return sum(self.client.nthreads().values())

    def wait(self) -> None:
        """Wait until a worker is connected.

        Raises
        ------
        InputError
            No worker connects in time.
        """
        self._await_worker(self.client)

    def publish(self, path: Path, name: str) -> Store:
        """Make a local file readable for the workers; return the folder that holds it under its own name.

        On a shared file system, workers read the file directly. Otherwise it is copied to the store as ``name/<file>``.
        """
        if not self.engine.store:
            return Store(str(path.resolve().parent))
        folder = self.store.inside(name)
        with self.screen.progress(f"copying {path.name} to the store", 1, "files") as progress:
            folder.upload(path, path.name)
            progress(1)
        return folder

    def close(self) -> None:
        """Disconnect from the workers; stop those that were started here."""
        self._closing.close()

    def _connect(self, distributed: Any) -> Any:
        if self.engine.scheduler == "dask-local":
            try:
                cluster = distributed.LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
            except (RuntimeError, TimeoutError) as error:  # a worker died or did not start in time
                raise InputError(
                    f"engine.scheduler=dask-local could not start {self.workers} workers on this machine "
                    f"({' '.join(str(error).split())}). Use fewer workers (engine.workers), or engine.scheduler=local."
                ) from error
            self._closing.enter_context(cluster)
            client = distributed.Client(cluster, set_as_default=False)
            client.register_plugin(_silence_plugin(distributed))
            return client
        try:
            return distributed.Client(self.engine.scheduler, timeout=ANSWER_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"engine.scheduler must be the address of a Dask scheduler; {self.engine.scheduler} does not answer "
                f"({type(error).__name__}). Start one with `dask scheduler`, or use engine.scheduler=dask-local."
            ) from error

    def _count_workers(self, client: Any) -> str:
        """Wait for the first worker; return how many workers and threads are connected, in words."""
        if not client.scheduler_info(n_workers=-1)["workers"]:
            self.screen.say(f"waiting for a worker at {self.engine.scheduler} (dask worker {client.scheduler.address})")
        self._await_worker(client)
        threads = client.nthreads()
        return f"{len(threads)} workers with {sum(threads.values())} threads"

    def _await_worker(self, client: Any) -> None:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError as error:
            raise InputError(
                f"{self.engine.scheduler}: no worker connected within {FIRST_WORKER_S} s. Start some: "
                f"dask worker {client.scheduler.address} --nthreads 1 --nworkers 4. Finished parts are kept."
            ) from error

    def _ship_code(self, client: Any, distributed: Any) -> None:
        """Send this checkout's code to workers that run other code, and to those that connect later."""
        expected = code_digest(PACKAGES)

        def worker_digest(packages: tuple[str, ...]) -> str:  # pickled by value: workers cannot import our code yet
            try:
                from histoblend.pipelines.runtime.provenance import code_digest as digest

                return digest(packages)
            except Exception:  # the package is missing, or comes from another checkout
                return ""

        outdated = [worker for worker, digest in client.run(worker_digest, PACKAGES).items() if digest != expected]
        if not outdated:
            return
        self.screen.say(f"  sending the code to {len(outdated)} workers")
        client.register_plugin(_code_plugin(distributed, f"histoblend-{expected[:12]}"))
        self._await_worker(client)
        digests = client.run(worker_digest, PACKAGES)
        failed = [worker for worker, digest in digests.items() if digest != expected]
        if failed:
            raise InputError(
                f"worker {failed[0]} could not load this checkout's code ({len(failed)} of {len(digests)} "
                "workers could not). Start it with a nanny (dask worker without --no-nanny), "
                "or from an image of this version."
            )

    def _check_store(self, client: Any) -> None:
        """Check, before hours of work, that every worker can read files written by this machine."""
        store = self.store
        name = store.check()
        try:
            visible = client.run(_can_see, store.url, name)
        finally:
            store.remove(name)
        unable = [worker for worker, sees in visible.items() if not sees]
        if unable:
            raise InputError(
                f"every worker must be able to read the run's data under {store.url}; {len(unable)} cannot (first: "
                f"{unable[0]}). Mount that folder on the workers under the same path, or set "
                "engine.store=s3://bucket/folder."
            )


def _by_name() -> Callable[..., Any]:
    """Return a function that calls another function by module and name.

    It is a closure, so it is pickled by value: the scheduler reads every task, but does not have our code.
    """

    def call(module: str, name: str, *arguments: Any) -> Any:
        import importlib

        return getattr(importlib.import_module(module), name)(*arguments)

    return call


def _can_see(url: str, name: str) -> bool:
    """Whether the worker that runs this can see a file of the store."""
    return Store(url).sees(name)


def _code_plugin(distributed: Any, name: str) -> Any:
    """Return a plugin that unpacks our packages on each nanny, in a folder of this name, and restarts its workers.

    Dask's own UploadDirectory fails if several nannies that share a folder unpack at the same time.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path_in_package, path in source_files(PACKAGES):
            archive.write(path, f"histoblend/{path_in_package}")
    content = buffer.getvalue()

    class Code(distributed.NannyPlugin):
        restart = True

        def setup(self, nanny: Any) -> None:
            import contextlib
            import io
            import os
            import shutil
            import sys
            import tempfile
            import zipfile

            # The name contains the digest of the code, so an existing folder is up to date. It keeps compiled kernels.
            target = os.path.join(nanny.local_directory, name)
            if not os.path.isdir(target):
                unpacked = tempfile.mkdtemp(dir=nanny.local_directory)
                zipfile.ZipFile(io.BytesIO(content)).extractall(unpacked)
                with contextlib.suppress(OSError):  # another nanny renamed its folder first
                    os.rename(unpacked, target)
                shutil.rmtree(unpacked, ignore_errors=True)
            if target not in sys.path:
                sys.path.insert(0, target)

    plugin = Code()
    plugin.name = name
    return plugin


def _silence_plugin(distributed: Any) -> Any:
    """Return a plugin that discards what libraries print on this machine's workers."""

    class Silence(distributed.WorkerPlugin):
        def setup(self, worker: Any) -> None:
            import os

            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)

    return Silence()


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise InputError(
            "engine.scheduler other than 'local' needs Dask; it is not installed. Install it with: "
            ".venv/bin/pip install -r requirements-dask.txt."
        ) from error
    return distributed


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn errors of the cluster into an InputError of one line.

    Raises
    ------
    InputError
        The same task killed several workers, or the connection was lost.
    """
    from distributed import KilledWorker
    from distributed.client import CancelledError

    try:
        yield
    except KilledWorker as error:
        raise InputError(
            f"a task killed {error.allowed_failures + 1} workers in a row, probably out of memory "
            f"(last: {error.last_worker.address}). Give workers more memory, or use smaller shards (features.shard, "
            "embeddings.shard). Finished parts are kept: run the same command again to resume."
        ) from error
    except (CancelledError, ConnectionError) as error:
        raise InputError(
            f"the connection to the cluster was lost ({type(error).__name__}). Finished parts are kept: run "
            "the same command again to resume."
        ) from error
