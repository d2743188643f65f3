"""Files of a bundle cannot expand: skops files hold each part once, and nothing but numbers, text and arrays."""

import io
import json
import zipfile

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.models.file_checks import check_content
from histoblend.models.heads.logistic import TRUSTED, LogisticHead
from tests.data.sources.test_archives import zipped

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Members of a fitted head's skops file."""
    folder = tmp_path_factory.mktemp("head")
    LogisticHead().fit(X, (X[:, 0] > 0).astype(int), np.arange(60) // 6).save(folder)
    with zipfile.ZipFile(folder / "head.skops") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members, packing=zipfile.ZIP_DEFLATED):
    return zipped(io.BytesIO(), members, packing).getvalue()


def array(value):
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def node(kind, module="builtins", **more):
    loader = {"ndarray": "NdArrayNode", "csr_matrix": "SparseMatrixNode"}.get(kind, f"{kind.title()}Node")
    return {"__class__": kind, "__module__": module, "__loader__": loader, **more}


def doubled(mark):
    """Nested tuples: each has the next one twice."""
    inner = node("tuple", content=[], __id__=1)
    for number in range(2, 40):
        again = {**node("tuple", content="1" if mark == "JsonNode" else []), "__loader__": mark, "__id__": number - 1}
        inner = node("tuple", content=[inner, again], __id__=number)
    return inner


def shared(name):
    return node("list", content=[node("ndarray", "numpy", type="numpy", file=name, __id__=n) for n in range(200)])


SPARSE = packed({"data.npy": array(np.zeros(10**6))})
HOSTILE = {
    "zeros": ({"z.npy": array(np.zeros(2 * 10**6))}, "expected to expand to at most 10000000 bytes"),
    "many zeros": ({f"{n}.npy": array(np.zeros(10**5)) for n in range(14)}, "expected to expand to at most"),
    "an archive inside": ({"s.npz": SPARSE}, "s.npz: expected an array of numbers"),
    "a false size": ({"z.npy": array(np.zeros(3)).replace(b"(3,)", b"(9,)")}, "z.npy: expected an array of numbers"),
    "an array 200 times": ({"z.npy": array(np.zeros(9)), "schema": shared("z.npy")}, "a NdArrayNode twice"),
    "doubled by name": ({"schema": doubled("CachedNode")}, "a CachedNode of builtins.tuple"),
    "doubled as text": ({"schema": doubled("JsonNode")}, "a part twice, by its number"),
    "doubled by number": ({"schema": doubled("TupleNode")}, "a TupleNode twice"),
    "a sparse matrix": ({"schema": node("csr_matrix", "scipy.sparse", content="s.npz")}, "a SparseMatrixNode"),
    "objects": (
        {"schema": node("ndarray", "numpy", type="json", content=[], shape=[])}, "a NdArrayNode of numpy.ndarray"),
    "JSON in JSON": ({"schema": node("json", content="[" * 5000)}, "a JsonNode with parts"),
    "deep": ({"schema": {"a": json.loads("[" * 200 + "]" * 200)}}, "nested at most 100 levels deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_skops_file_that_expands_is_refused(head, name):
    more, message = HOSTILE[name]
    members = {**head, **more}
    schema = json.loads(head["schema.json"])
    schema["content"]["content"]["more_"] = members.pop("schema", None)
    content = packed({**members, "schema.json": json.dumps(schema)})
    with pytest.raises(InputError, match=message):
        LogisticHead.load({"head.skops": content}, "b")


def test_a_fitted_head_is_accepted(head):
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        check_content("head.skops", packed(head, packing), TRUSTED)
        assert LogisticHead.load({"head.skops": packed(head, packing)}, "b").predict_proba(X).shape == (60, 2)
