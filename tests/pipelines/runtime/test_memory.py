"""Peak memory includes short allocations and child processes, and freed memory is returned."""

import ctypes
import platform
import subprocess
import sys

import numpy as np
import psutil
import pytest

from histoblend.pipelines.runtime.resources import peak_memory, trim_memory


def test_peak_memory_sees_a_large_array():
    with peak_memory(0.01) as peak:
        before = peak()
        block = bytearray(80_000_000)
        block[::4096] = b"x" * len(block[::4096])
        with peak_memory(0.01) as inner:
            after = inner()
        del block
    assert after - before > 60


def test_a_child_process_counts():
    code = "block = bytearray(90_000_000); block[::4096] = b'x' * len(block[::4096]); print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with peak_memory() as peak:
        before = peak()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with peak_memory() as peak:
            during = peak()
        child.communicate(b"\n", timeout=30)
    assert during - before >= 70


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux states the proportional set size")
def test_a_page_that_processes_share_counts_once(tmp_path):
    path = tmp_path / "shared.npy"
    np.save(path, np.ones(10_000_000))
    code = f"import numpy; x = numpy.load({str(path)!r}, mmap_mode='r'); print(x.sum(), flush=True); input()"
    command = [sys.executable, "-c", code]
    with peak_memory(0.01) as peak:
        before = peak()
        children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
        for child in children:
            child.stdout.readline()
        with peak_memory(0.01) as together:
            shared = together()
        for child in children:
            child.communicate(b"\n", timeout=30)
    assert before + 80 < shared < before + 240  # as resident memory, the pages alone would be 240 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns freed memory on request")
def test_freed_memory_is_returned_to_the_system():
    library, size = ctypes.CDLL(None), 50_000
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    blocks = [library.malloc(size) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    # The last block keeps the freed ones below it from being returned.
    for block in blocks[:-1]:
        library.free(block)
    before = psutil.Process().memory_info().rss
    trim_memory()
    assert before - psutil.Process().memory_info().rss > 80_000_000
    library.free(blocks[-1])
