"""Runs on a Dask cluster: same results as on one machine, even if workers are lost, and one-line errors."""

import contextlib
import io
import os
import shutil
import signal
import socket
from types import SimpleNamespace
from unittest.mock import Mock, create_autospec

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import scale
from histoblend.data.errors import InputError
from histoblend.data.storage.store import Store
from histoblend.models.heads.registry import load_head
from histoblend.pipelines.config import EngineConfig
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.engine.cluster import PACKAGES, Cluster
from histoblend.pipelines.engine.worker import JOB, make_part
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.run_files import PREDICTIONS
from histoblend.pipelines.runtime.provenance import code_digest
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.heads import out_of_fold
from tests import ROOT
from tests.pipelines.clusters import Striking, cluster, slow
from tests.pipelines.fits import local

pytest.importorskip("distributed", reason="requirements-dask.txt is not installed")

SMALL = [
    "data.n=320", "data.slides=16", "data.difficulty=0.1", "split.folds=2", "features.families=['colour']",
    "features.shard=8", "heads.features=['context','both','both-normalised']",
    "embeddings.backbone=efficientnet-lite0", "embeddings.size=96", "embeddings.stages=1", "embeddings.shard=8",
]  # fmt: skip


def run_of(root, *settings, screen=None):
    config = load_config(ROOT / "configs" / "phantom.toml", [*SMALL, *settings])
    return plan_run(config, root, screen=screen or Screen())


def begun(root, alone, *settings, screen=None):
    """A run of the patches of `alone`, which are copied."""
    shutil.copytree(alone.step("prepare").folder, root / alone.folder.name / "1-patches")
    return run_of(root, *settings, screen=screen)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run on this machine, without a cluster."""
    run = run_of(tmp_path_factory.mktemp("alone"), "engine.workers=1")
    assert run.step("heads")
    return run


@pytest.fixture(scope="module")
def port():
    """A free port for a server of S3, whose address the workers know from their start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    given = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**given, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{number}"}.items():
            patch.setenv(name, value)
        yield number


@pytest.fixture(scope="module")
def address(tmp_path_factory, port):
    """A scheduler with three workers, in a folder from which our code cannot be imported."""
    with cluster(tmp_path_factory.mktemp("cluster")) as scheduler:
        yield scheduler


def table(run, step):
    return (run.folder / step / "values.npy").read_bytes()


def kill_one(run):
    """Kill a worker like the kernel does when memory runs out; its nanny starts another one."""
    pids = run.cluster.client.run(os.getpid)
    os.kill(min(pids.values()), signal.SIGKILL)


def retire_one(run):
    """Retire a worker, which hands over its data first; its nanny starts another one."""
    client = run.cluster.client
    client.retire_workers([min(client.scheduler_info(n_workers=-1)["workers"])], close_workers=True)


LABELS = {"features": "handcrafted features", "embeddings": "embeddings"}


@pytest.mark.parametrize(
    ("step", "remove"), [("features", retire_one), ("features", kill_one), ("embeddings", kill_one)]
)
def test_a_table_is_the_same_if_a_worker_is_lost(tmp_path, alone, address, step, remove):
    screen = Striking(LABELS[step], lambda: remove(run))
    run = begun(tmp_path, alone, f"engine.scheduler={address}", screen=screen)
    with contextlib.closing(run):
        folder, manifest = run.step(step)
    assert screen.struck
    assert table(run, folder.name) == table(alone, folder.name)
    assert manifest["notes"]["cluster"]["parts"] == 40
    assert not (folder / "parts").exists()
    # The engine is not part of the key: the next run on this machine reuses the step.
    assert run_of(tmp_path).step(step).manifest == manifest


def test_a_slow_worker_does_not_change_the_table(tmp_path, alone, address):
    run = begun(tmp_path, alone, f"engine.scheduler={address}")
    with contextlib.closing(run):
        assert run.step("prepare")
        with slow(min(run.cluster.client.run(os.getpid).values())):
            assert run.step("features")
    assert table(run, "2-features") == table(alone, "2-features")


def test_fits_on_a_whole_table_are_bit_identical(tmp_path, alone, address):
    screen = Striking("fits", lambda: kill_one(run))
    run = begun(tmp_path, alone, f"engine.scheduler={address}", "heads.features=['context']", screen=screen)
    with contextlib.closing(run):
        folder, manifest = run.step("heads")
    assert screen.struck
    actual, expected = (pd.read_parquet(step / PREDICTIONS) for step in (folder, alone.step("heads").folder))
    pd.testing.assert_frame_equal(actual, expected[list(actual)], check_exact=True)
    for number in range(3):
        name = f"xgboost_context/booster-{number}.json"
        assert (folder / name).read_bytes() == (alone.step("heads").folder / name).read_bytes()
    assert not any(name.startswith(("tables", "remote")) for name in manifest["files"])
    assert run_of(tmp_path, "heads.features=['context']").step("heads").manifest == manifest


def test_fits_on_a_spread_table_are_those_on_blocks_if_a_worker_is_killed(tmp_path, alone, address, monkeypatch):
    screen = Striking("fits", lambda: kill_one(run), share=0.3)
    settings = ["engine.heads=spread", "heads.features=['context']"]
    run = begun(tmp_path, alone, f"engine.scheduler={address}", *settings, screen=screen)
    with contextlib.closing(run):
        folder, manifest = run.step("heads")
    assert screen.struck
    actual, expected = (pd.read_parquet(step / PREDICTIONS) for step in (folder, alone.step("heads").folder))
    monkeypatch.setattr("histoblend.pipelines.engine.fits.IN_MEMORY_ROWS", 0)
    fitter, patches = local(feature_sets(alone)["context"][0]), patches_of(alone).table
    for head in ("logistic", "xgboost"):
        name = f"prob_{head}_context"
        np.testing.assert_array_equal(actual[name], out_of_fold(head, fitter, patches, seed=0)[0])
        learned = expected["split"] == "train"
        scores = [roc_auc_score(each["label"][learned], each[name][learned]) for each in (actual, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=0.002 if head == "logistic" else 0.03)
    assert (folder / "xgboost_context" / "head.json").is_file()
    # The manifest records this, because these fits differ from those in one memory and must not replace them.
    assert manifest["inputs"]["spread context"] == "yes"


def test_an_interrupted_table_is_resumed_and_a_damaged_part_is_computed_again(tmp_path, alone, address):
    class InterruptedRunError(Exception):
        pass

    def interrupt():
        raise InterruptedRunError

    run = begun(
        tmp_path, alone, f"engine.scheduler={address}", screen=Striking(LABELS["features"], interrupt, share=0.5)
    )
    with contextlib.closing(run), pytest.raises(InterruptedRunError):
        run.step("features")
    parts = sorted((run.folder / "2-features.partial" / "parts").glob("part-*.parquet"))
    assert len(parts) >= 20
    before = {path: path.stat().st_mtime_ns for path in parts}
    damaged = bytearray(parts[3].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    parts[3].write_bytes(damaged)
    resumed = run_of(tmp_path, f"engine.scheduler={address}")
    with contextlib.closing(resumed):
        manifest = resumed.step("features").manifest
    assert table(resumed, "2-features") == table(alone, "2-features")
    assert manifest["notes"]["cluster"]["parts"] <= 40 - len(before) + 1


def test_workers_must_be_able_to_read_the_store(tmp_path, address):
    # A memory store is private to its process.
    run = run_of(tmp_path, f"engine.scheduler={address}", "engine.store=memory://here")
    with (
        contextlib.closing(run),
        pytest.raises(InputError, match=r"every worker must be able to read the run's data under memory:"),
    ):
        run.step("features")


def test_a_lost_scheduler_ends_the_run_and_one_machine_resumes_it(tmp_path, alone):
    (tmp_path / "cluster").mkdir()
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(cluster(tmp_path / "cluster", workers=1))
        run = begun(tmp_path, alone, f"engine.scheduler={scheduler}", screen=Striking(LABELS["features"], stack.close))
        with contextlib.closing(run), pytest.raises(InputError, match="connection to the cluster was lost"):
            run.step("features")
    assert run_of(tmp_path, "engine.workers=1").step("features")
    assert table(run, "2-features") == table(alone, "2-features")


def test_a_worker_that_cannot_load_the_code_is_named(tmp_path):
    with cluster(tmp_path, 1, "--no-nanny") as scheduler:
        engine = Cluster(EngineConfig(scheduler=scheduler), tmp_path / "run", 1, Screen())
        with contextlib.closing(engine), pytest.raises(InputError, match=r"could not load this checkout's code"):
            engine.connect()


def test_a_task_that_kills_every_worker_ends_the_run(tmp_path, address):
    engine = Cluster(EngineConfig(scheduler=address), tmp_path / "run", 1, Screen())
    words = r"a task killed 4 workers in a row, .*\(last: tcp://"
    with contextlib.closing(engine), pytest.raises(InputError, match=words):
        list(engine.run([(os._exit, (1,))]))


def test_an_input_error_on_a_worker_is_passed_on(tmp_path, address):
    store = Store(str(tmp_path / "job")).make()
    store.write(JOB, b"{}")
    engine = Cluster(EngineConfig(scheduler=address), tmp_path / "run", 1, Screen())
    words = r"^.*/job\.json: expected the job of this run; the file was altered\. Run again\.$"
    with contextlib.closing(engine), pytest.raises(InputError, match=words):
        list(engine.run([(make_part, (store.url, "another", 0, 1, ""))]))


def test_a_local_cluster_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    def fail(**_options):
        raise RuntimeError("Cluster failed to start:\n  Nanny failed")

    monkeypatch.setattr("distributed.LocalCluster", fail)
    engine = Cluster(EngineConfig(scheduler="dask-local"), tmp_path, 64, Screen())
    words = (
        r"could not start 64 workers on this machine \(Cluster failed to start: Nanny failed\)\. Use fewer workers \("
    )
    with contextlib.closing(engine), pytest.raises(InputError, match=words):
        engine.connect()


def test_a_missing_scheduler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("histoblend.pipelines.engine.cluster.ANSWER_S", 1)
    engine = Cluster(EngineConfig(scheduler="tcp://127.0.0.1:9"), tmp_path, 1, Screen())
    with contextlib.closing(engine), pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:9 does not answer"):
        engine.connect()


def test_a_missing_worker_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("histoblend.pipelines.engine.cluster.FIRST_WORKER_S", 1)
    with cluster(tmp_path, 0) as scheduler:
        engine = Cluster(EngineConfig(scheduler=scheduler), tmp_path / "run", 1, Screen())
        with (
            contextlib.closing(engine),
            pytest.raises(InputError, match=r"no worker connected within 1 s\. Start some: dask"),
        ):
            engine.connect()


def test_workers_that_cannot_load_the_code_are_counted_among_all(tmp_path):
    old, new, expected = {"a": "", "b": "", "c": "old"}, {"a": "", "b": "", "c": ""}, code_digest(PACKAGES)
    new |= {"c": expected, "joined later": expected}
    client = Mock(run=Mock(side_effect=[old, new]))
    engine = Cluster(EngineConfig(scheduler="dask-local"), tmp_path, 1, Screen())
    with pytest.raises(InputError, match=r"worker a could not load this checkout's code \(2 of 4 workers could not\)"):
        engine._ship_code(client, pytest.importorskip("distributed"))


def test_the_benchmark_calls_the_table_with_its_arguments(tmp_path, monkeypatch):
    def compute(cluster, recipe, columns, patches, images, folder, **_options):
        assert images is patches.pixels
        np.save(folder / "values.npy", images)

    patches = SimpleNamespace(pixels=np.arange(3))
    run = SimpleNamespace(columns=["a"], config=load_config(ROOT / "configs" / "phantom.toml"), expected=patches.pixels)
    monkeypatch.setattr(scale, "extract_on_cluster", create_autospec(scale.extract_on_cluster, side_effect=compute))
    monkeypatch.setattr(scale, "patches_of", lambda run: patches)
    assert scale.table_seconds(None, run, tmp_path / "table", 2)[0] >= 0


@pytest.mark.parametrize("value", ["dask", "host:8786", "http://host:8786", ""])
def test_an_invalid_scheduler_is_refused(value):
    with pytest.raises(InputError, match=r"engine\.scheduler: must be local, dask-local or an address"):
        load_config(ROOT / "configs" / "phantom.toml", [f"engine.scheduler={value}"])


@pytest.fixture
def bucket(port):
    """A bucket on an S3-compatible server on this machine."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    s3fs.S3FileSystem().mkdir("slides")
    yield "s3://slides/deep"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_an_object_store_gives_the_same_results(tmp_path, alone, address, bucket):
    settings = [
        f"engine.scheduler={address}",
        f"engine.store={bucket}",
        "heads.features=['both','both-normalised']",
        "heads.heads=['logistic']",
        "features.shard=40",
        "embeddings.shard=40",
    ]
    run = begun(tmp_path, alone, *settings)
    with contextlib.closing(run):
        heads, refitted = run.step("heads").folder, run.step("refit").folder
    for name in ("2-features", "2-features-normalised", "3-embeddings", "3-embeddings-normalised"):
        assert table(run, name) == table(alone, name)
    for name in ("logistic_both", "logistic_both-normalised"):
        first, second = (load_head(folder / name) for folder in (refitted, alone.step("refit").folder))
        np.testing.assert_array_equal(first.coef_, second.coef_)
    expected = pd.read_parquet(alone.step("heads").folder / PREDICTIONS)
    actual = pd.read_parquet(heads / PREDICTIONS)
    pd.testing.assert_frame_equal(actual, expected[list(actual)])
    store = Store(bucket).inside(run.config.name)
    # Tables stay in the store as Parquet; temporary files of the heads do not.
    kept = [name.rpartition("-")[0] for name in store.names()]
    tables = ["2-features", "2-features-normalised", "3-embeddings", "3-embeddings-normalised"]
    assert sorted(kept) == [*tables, "patches"]
    folder = store.inside(next(name for name in store.names() if name.rpartition("-")[0] == "2-features"))
    parts = [pd.read_parquet(io.BytesIO(folder.read(name))) for name in folder.names() if name.endswith(".parquet")]
    whole = pd.concat(parts).set_index("row").sort_index()
    np.testing.assert_array_equal(whole.to_numpy(), np.load(run.folder / "2-features" / "values.npy"))
