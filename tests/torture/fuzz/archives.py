"""Fuzzes the readers of archives: zip and tar files, also packed, skops and .keras files, and HDF5 weights."""

import contextlib
import io
import tempfile
from pathlib import Path

from tests.torture.fuzz.driver import instrumented, main

with instrumented("histoblend", "tarfile", "zipfile"):
    from histoblend.data.errors import InputError
    from histoblend.data.sources.archives import unpack_archive
    from histoblend.data.storage.expansion import expansion_limit, read_zip
    from histoblend.models.file_checks import check_content

from tests.data.sources.test_archives import GOOD, tarred, zipped
from tests.data.storage.test_expansion import PACKERS, pax
from tests.features.networks.test_keras_checks import hdf5, keras_file, layer
from tests.features.networks.test_onnx_checks import network


def seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        plain = tarred(Path(folder, "a")).read_bytes()
        headers = tarred(Path(folder, "b"), {pax("a", {"comment": "x"}): b"1", "b" * 200: b"2"}).read_bytes()
    packed = [pack(plain) for pack in PACKERS.values()]
    networks = [keras_file(layer("Dense"), layer("Conv2D")), network().SerializeToString(), hdf5()]
    return [zipped(io.BytesIO(), GOOD).getvalue(), plain, headers, *packed, *networks]


def read(content: bytes) -> None:
    for name in ("a.keras", "a.skops", "a.onnx", "a.npy"):
        with contextlib.suppress(InputError):
            check_content(name, content)
    with contextlib.suppress(InputError):
        assert sum(map(len, read_zip("a", content).values())) <= expansion_limit(len(content))
    with tempfile.TemporaryDirectory(prefix="fuzz-files-") as temporary:
        archive, target = Path(temporary, "archive"), Path(temporary, "target")
        archive.write_bytes(content)
        try:
            unpack_archive(archive, target)
        except InputError:
            assert not target.exists() or not list(target.iterdir())
        total = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        assert total <= expansion_limit(len(content))
        assert {path.name for path in Path(temporary).iterdir()} <= {"archive", "target"}


if __name__ == "__main__":
    main("tests.torture.fuzz.archives", read, seeds)
