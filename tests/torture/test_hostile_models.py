"""Models and archives from other people: what refers to other files, expands or requests memory is refused unread."""

import io
import json
import zipfile

import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.archives import unpack_archive
from histoblend.features.networks.weights import read_checkpoint
from histoblend.models.bundle import open_bundle, seal_bundle
from histoblend.models.file_checks import check_content
from histoblend.models.heads.logistic import TRUSTED
from tests.data.sources.test_archives import zipped
from tests.data.storage.test_expansion import HOSTILE as ARCHIVES
from tests.features.networks.test_keras_checks import CONFIGS, WEIGHTS, hdf5, keras_file, layer
from tests.features.networks.test_onnx_checks import HOSTILE as NETWORKS
from tests.features.networks.test_weights import checkpoint

pytestmark = pytest.mark.torture


def sealed(folder, name, content):
    """Add a file to a bundle, with matching digests."""
    index = json.loads((folder / "bundle.json").read_text())
    (folder / name).write_bytes(content)
    seal_bundle(folder, {key: index[key] for key in index.keys() - {"files", "digest", "format"}})


@pytest.mark.parametrize(
    ("fault", "name", "contents"),
    [
        ("an ONNX file with other files, operators, graphs or sizes", "n.onnx",
         [make().SerializeToString() for make, _ in NETWORKS.values()]),
        ("a .keras file with other layers or functions", "n.keras", [keras_file(each) for each, _ in CONFIGS.values()]),
        ("a .keras file with linked, external or expanding weights", "n.keras",
         [keras_file(layer("Dense"), weights=hdf5(fill)) for fill, _ in WEIGHTS.values()]),
    ],
    ids=["onnx", "keras layers", "keras weights"],
)  # fmt: skip
def test_a_sealed_bundle_with_a_hostile_network_is_refused(sound, fault, name, contents, faults):
    for content in contents:
        sealed(sound, name, content)
        with pytest.raises(InputError, match=r"Do not load it: it was not written by this program\.$") as error:
            open_bundle(sound)
    faults(fault, len(contents), len(contents), f"error: {error.value}".replace(str(sound), "bundle"))


def test_archives_that_expand_are_refused(tmp_path, monkeypatch, faults):
    monkeypatch.setattr("histoblend.data.sources.archives.MAX_NAMES", 10**6)
    monkeypatch.setattr("histoblend.data.sources.archives.MAX_DIRECTORY", 2 * 10**6)
    for make, _ in ARCHIVES.values():
        archive = make(tmp_path / "archive")
        with pytest.raises(InputError) as error:
            unpack_archive(archive, tmp_path / "target")
        assert not (tmp_path / "target").exists()
    sees = f"error: {error.value}".replace(str(tmp_path), "…")
    faults("an archive whose headers, names or members expand", len(ARCHIVES), len(ARCHIVES), sees)


def test_small_files_that_expand_or_nest_are_refused(tmp_path, faults):
    """Each took gigabytes, or minutes, or ended the process."""
    nested = b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(200)) + b"."
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    for content in (nested, deep):
        (tmp_path / "file.pth").write_bytes(checkpoint(content))
        with pytest.raises(InputError):
            read_checkpoint(tmp_path / "file.pth")
    for more in ({"a.npy": bytes(30_000_000)}, {f"{n}.npy": bytes(10**6) for n in range(30)}):
        content = zipped(io.BytesIO(), {"schema.json": b"{}", **more}, zipfile.ZIP_DEFLATED).getvalue()
        assert len(content) < 50_000
        with pytest.raises(InputError) as error:
            check_content("head.skops", content, TRUSTED)
    faults("a small PyTorch or skops file that expands or nests", 4, 4, f"error: {error.value}")
