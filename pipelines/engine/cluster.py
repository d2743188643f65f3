"""A Dask cluster as the engine of a run: connecting to it, bringing the code there, and running tasks."""

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

#: Packages that workers need.
PACKAGES = ("__init__.py", "data", "features", "models", "reports", "pipelines")

#: Seconds in which a scheduler must answer, and a first worker be there.
ANSWER_S = 20
FIRST_WORKER_S = 120

#: A function of ours and what it takes. All tasks that are run together call the same function.
Task = tuple[Callable[..., Any], tuple[Any, ...]]


class Cluster:
    """Workers of a Dask cluster, connected to when they are first needed.

    Parameters
    ----------
    engine : EngineConfig
        ``scheduler`` is not "local".
    run : Path
        Folder of the run: the store where ``engine.store`` names none.
    workers : int
        Of a cluster on this machine.
    screen : Screen
    """

    def __init__(self, engine: EngineConfig, run: Path, workers: int, screen: Screen) -> None:
        self.engine, self.run_folder, self.workers, self.screen = engine, run.resolve(), workers, screen
        self._closing = contextlib.ExitStack()

    @cached_property
    def client(self) -> Any:
        """The connection; InputError where there is no scheduler, no worker, or one that cannot work for this run."""
        distributed = _import_distributed()
        # A worker that goes is told of in one line of ours, not in Dask's.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        client = self._closing.enter_context(self._connect(distributed))
        workers = self._count_workers(client)
        offers = client.scheduler_info(n_workers=0)["services"]
        dashboard = f", dashboard {client.dashboard_link}" if "dashboard" in offers else ""
        self.screen.say(f"cluster: {workers} at {client.scheduler.address}{dashboard}")
        self._ship_code(client, distributed)
        self._check_store(client)
        return client

    def connect(self) -> None:
        """Connect, where that was not done yet: see :attr:`client`."""
        self.client  # noqa: B018 - a property that does work, once

    @cached_property
    def store(self) -> Store:
        """Where this run's data lie for the workers."""
        return (
            Store(self.engine.store).inside(self.run_folder.name) if self.engine.store else Store(str(self.run_folder))
        )

    def run(self, tasks: Sequence[Task], *, ordered: bool = False) -> Iterator[Any]:
        """Run tasks on the workers; yield their results, as they come or in order.

        A task whose worker goes is given to another one.

        Parameters
        ----------
        tasks : sequence of (function, arguments)
            Functions of modules, arguments as for :meth:`spread`. Arguments and results must be small: they pass the
            scheduler.
        ordered : bool

        Raises
        ------
        InputError
            Workers died time and again over the same task, or the scheduler is gone.
        """
        from distributed import as_completed

        if not tasks:
            return
        function = tasks[0][0]
        # All at once, so that workers which come later find some left.
        futures = self.spread(function.__module__, function.__name__, *zip(*(given for _, given in tasks), strict=True))
        with explained():
            if ordered:
                yield from (future.result() for future in futures)
                return
            for future in as_completed(futures, loop=self.client.loop):
                yield future.result()
                future.release()

    def spread(self, module: str, name: str, *arguments: Sequence[Any]) -> list[Any]:
        """Call a function of ours on the workers, once for each of the arguments; return the futures.

        Parameters
        ----------
        module, name : str
            Of the function.
        *arguments : sequence
            Of equal lengths, as for :func:`map`: plain values, arrays, and futures. The scheduler reads them, and has
            none of our code, so nothing of ours may be among them.
        """
        count = len(arguments[0])
        # A word for the dashboard, and a number that no other calls have.
        label = f"{name}-{secrets.token_hex(4)}"
        return list(self.client.map(_by_name(), [module] * count, [name] * count, *arguments, pure=False, key=label))

    def threads(self) -> int:
        """Threads of all workers that are there now."""
        return sum(self.client.nthreads().values())

    def wait(self) -> None:
        """Wait until there is a worker.

        Raises
        ------
        InputError
            None comes.
        """
        self._await_worker(self.client)

    def publish(self, path: Path, name: str) -> Store:
        """See that workers can read a file of this machine; return the folder where they find it by its own name.

        On a shared file system it is read where it lies; elsewhere it is brought into the store as ``name/<file>``.
        """
        if not self.engine.store:
            return Store(str(path.resolve().parent))
        place = self.store.inside(name)
        with self.screen.progress(f"bringing {path.name} into the store", 1, "files") as progress:
            place.upload(path, path.name)
            progress(1)
        return place

    def close(self) -> None:
        """Let go of the workers; end those that were started here."""
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
            except (RuntimeError, TimeoutError) as error:  # a worker died, or was not there in time
                raise InputError(
                    f"engine.scheduler=dask-local must start {self.workers} workers on this machine; they did not "
                    f"start ({' '.join(str(error).split())}). Use fewer (engine.workers), or engine.scheduler=local."
                ) from error
            self._closing.enter_context(cluster)
            client = distributed.Client(cluster, set_as_default=False)
            client.register_plugin(_silence(distributed))
            return client
        try:
            return distributed.Client(self.engine.scheduler, timeout=ANSWER_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"engine.scheduler must be the address of a Dask scheduler; {self.engine.scheduler} does not answer "
                f"({type(error).__name__}). Start one with `dask scheduler`, or use engine.scheduler=dask-local."
            ) from error

    def _count_workers(self, client: Any) -> str:
        """Wait for a first worker; say how many there are."""
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
                f"{self.engine.scheduler}: expected at least one worker; none came in {FIRST_WORKER_S} s. Start some: "
                f"dask worker {client.scheduler.address} --nthreads 1 --nworkers 4. Finished parts are kept."
            ) from error

    def _ship_code(self, client: Any, distributed: Any) -> None:
        """See that every worker runs this checkout's code; send it to those that do not, and to those still to come."""
        wanted = code_digest(PACKAGES)

        def found(packages: tuple[str, ...]) -> str:  # sent by value: nothing of ours can be imported there yet
            try:
                from histoblend.pipelines.runtime.provenance import code_digest as digest

                return digest(packages)
            except Exception:  # none, or another checkout's
                return ""

        others = [worker for worker, digest in client.run(found, PACKAGES).items() if digest != wanted]
        if not others:
            return
        self.screen.say(f"  sending the code to {len(others)} workers")
        client.register_plugin(_code(distributed, f"histoblend-{wanted[:12]}"))
        self._await_worker(client)
        left = [worker for worker, digest in client.run(found, PACKAGES).items() if digest != wanted]
        if left:
            raise InputError(
                f"worker {left[0]} could not be given this checkout's code ({len(left)} of {len(left) + len(others)} "
                "workers). Start it with a nanny (dask worker without --no-nanny), or from an image of this version."
            )

    def _check_store(self, client: Any) -> None:
        """See that every worker sees what is written here, before hours of work."""
        store = self.store
        name = store.check()
        try:
            seen = client.run(_sees, store.url, name)
        finally:
            store.remove(name)
        blind = [worker for worker, sees in seen.items() if not sees]
        if blind:
            raise InputError(
                f"every worker must see the run's data under {store.url}; {len(blind)} do not (first: {blind[0]}). "
                "Mount that folder there under the same path, or give engine.store=s3://bucket/folder."
            )


def _by_name() -> Callable[..., Any]:
    """Return what calls a function of ours by its name.

    Being a closure it is sent by value: a scheduler reads every task, and has none of our code.
    """

    def call(module: str, name: str, *arguments: Any) -> Any:
        import importlib

        return getattr(importlib.import_module(module), name)(*arguments)

    return call


def _sees(url: str, name: str) -> bool:
    """On a worker: whether a store's file is seen."""
    return Store(url).sees(name)


def _code(distributed: Any, name: str) -> Any:
    """Return a plugin that brings our packages to nannies, in a folder of this name, and restarts their workers.

    Dask's own UploadDirectory fails where several nannies of a machine, which share a folder, unpack at the same time.
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

            # Named by its content: what is there already is the same, with the kernels that were compiled beside it.
            target = os.path.join(nanny.local_directory, name)
            if not os.path.isdir(target):
                place = tempfile.mkdtemp(dir=nanny.local_directory)
                zipfile.ZipFile(io.BytesIO(content)).extractall(place)
                with contextlib.suppress(OSError):  # another nanny was faster
                    os.rename(place, target)
                shutil.rmtree(place, ignore_errors=True)
            if target not in sys.path:
                sys.path.insert(0, target)

    plugin = Code()
    plugin.name = name
    return plugin


def _silence(distributed: Any) -> Any:
    """Return a plugin that keeps what libraries print on workers of this machine off its terminal."""

    class Silence(distributed.WorkerPlugin):
        def setup(self, worker: Any) -> None:
            import os

            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)

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
    """Say in one line why work on a cluster came to nothing.

    Raises
    ------
    InputError
        Workers died time and again over the same task, or all are gone.
    """
    from distributed import KilledWorker
    from distributed.client import CancelledError

    try:
        yield
    except KilledWorker as error:
        raise InputError(
            f"a task ended {error.allowed_failures + 1} workers, one after the other, most likely for want of memory "
            f"(last: {error.last_worker.address}). Give workers more memory, or use smaller shards (features.shard, "
            "embeddings.shard). Finished parts are kept: the same command goes on where it stopped."
        ) from error
    except (CancelledError, ConnectionError) as error:
        raise InputError(
            f"the connection to the cluster was lost ({type(error).__name__}). Finished parts are kept: the same "
            "command goes on where it stopped."
        ) from error
