"""Errors of a child process are raised in the parent with their type."""

import errno
import os
import signal
import sys
import warnings

import pytest

from histoblend.data.errors import InputError
from histoblend.features.networks.child_process import call_in_child
from histoblend.features.networks.weights import CheckpointError
from histoblend.pipelines.runtime.resources import report_shortages


class OnlyThereError(Exception):
    """Cannot be unpickled: its constructor needs more arguments than it passes on."""

    def __init__(self, one, two):
        super().__init__(one)


def fail(kind):
    warnings.warn("a library's warning", stacklevel=1)
    sys.stderr.write("a library's words\n")
    if kind == "input":
        raise InputError("weights must fit; got others.")
    if kind == "checkpoint":
        raise CheckpointError("net.h5: expected weights.")
    if kind == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "net.onnx")
    if kind == "memory":
        raise MemoryError("Unable to allocate 9 GB")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OnlyThereError("its", "words")


def test_the_result_is_returned_and_the_environment_differs():
    assert call_in_child(os.getenv, ("HISTOBLEND_TEST",), {"HISTOBLEND_TEST": "there"}) == "there"
    assert "HISTOBLEND_TEST" not in os.environ


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("input", InputError, r"^weights must fit; got others\.$"),
        ("checkpoint", CheckpointError, r"^net\.h5: expected weights\.$"),
        ("disk", InputError, r"^net\.onnx: no space is left on the disk"),
        ("memory", InputError, r"^memory ran out \(Unable to allocate 9 GB\)"),
        ("killed", InputError, r"^a worker was (ended from outside|killed)"),
        ("ours", RuntimeError, r"^OnlyThereError: its$"),
    ],
)
def test_an_error_keeps_its_type(tmp_path, capfd, kind, expected, message):
    with pytest.raises(expected, match=message) as caught, report_shortages(tmp_path):
        call_in_child(fail, (kind,), {})
    assert type(caught.value) is expected
    assert capfd.readouterr() == ("", "")
