"""What a worker makes of its part: the numbers of the whole table, and a refusal where something is not the run's."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.storage.store import Store, StoredArray
from histoblend.features.extract import NonFiniteError
from histoblend.features.handcrafted.families import columns, compute
from histoblend.pipelines.engine import worker
from histoblend.pipelines.engine.worker import (
    JOB,
    from_parquet,
    job_key,
    job_text,
    make_part,
    pixels_digest,
    to_parquet,
)

pytest.importorskip("distributed", reason="requirements-dask.txt is not installed")
FAMILIES = ["colour"]
NAMES = [column.name for column in columns(FAMILIES)]


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def job(tmp_path, pixels):
    """A job's folder and key."""
    np.save(tmp_path / "pixels.npy", pixels)
    text = job_text(StoredArray.find(Store(str(tmp_path)), "pixels.npy"), NAMES, {"families": FAMILIES})
    Store(str(tmp_path / "job")).make().write(JOB, text.encode())
    return str(tmp_path / "job"), job_key(text)


def digest(pixels):
    return pixels_digest([hashlib.sha256(patch.tobytes()).hexdigest() for patch in pixels])


def test_a_part_contains_its_rows_of_the_table(job, pixels):
    part = make_part(*job, 3, 8, digest(pixels[3:8]))
    content = Store(job[0]).read_sealed(part.name)
    np.testing.assert_array_equal(from_parquet(content, NAMES), compute(pixels[3:8], FAMILIES))
    assert (part.start, part.stop, part.read, part.written) == (3, 8, pixels[3:8].nbytes, len(content))
    assert part.worker == "here"
    assert pd.read_parquet(f"{job[0]}/{part.name}")["row"].tolist() == [3, 4, 5, 6, 7]
    # The name depends only on the content, so two workers may compute the same part.
    assert make_part(*job, 3, 8, digest(pixels[3:8])).name == part.name


def test_pixels_of_another_run_are_refused(job, pixels):
    with pytest.raises(InputError, match="rows 0 to 4 are not the patches of this run"):
        make_part(*job, 0, 4, digest(pixels[1:5]))


def test_an_altered_job_is_refused(job, pixels):
    store = Store(job[0])
    store.write(JOB, store.read(JOB) + b" ")
    with pytest.raises(InputError, match="expected the job of this run; the file was altered"):
        make_part(*job, 0, 4, digest(pixels[:4]))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"code": "0" * 64}, "runs other code"), ({"libraries": {"numpy": "0.1"}}, r"numpy 0\.1 \(worker: ")],
)
def test_a_worker_with_other_code_or_libraries_refuses(job, pixels, change, words):
    text = json.dumps({**json.loads(Store(job[0]).read(JOB)), **change}, sort_keys=True)
    Store(job[0]).write(JOB, text.encode())
    with pytest.raises(InputError, match=words):
        make_part(job[0], job_key(text), 0, 4, digest(pixels[:4]))


def test_a_value_that_is_not_finite_names_its_row_and_column_in_the_whole_table(job, pixels, monkeypatch):
    def broken_compute(recipe, store):
        def function(patches):
            values = compute(patches, FAMILIES)
            values[1, 2] = np.nan
            return values

        return function

    monkeypatch.setattr(worker, "_compute", broken_compute)
    worker._open_job.cache_clear()
    with pytest.raises(NonFiniteError) as caught:
        make_part(*job, 4, 9, digest(pixels[4:9]))
    worker._open_job.cache_clear()
    assert (caught.value.row, caught.value.column) == (5, 2)


def test_parquet_round_trip_is_exact():
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    values[0] = [np.float32(1e-45), -0.0, np.finfo(np.float32).max]
    actual = from_parquet(to_parquet(values, ["a", "b", "c"], 10), ["a", "b", "c"])
    assert actual.tobytes() == values.tobytes()
