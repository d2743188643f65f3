"""Peak memory includes short allocations and child processes."""

import subprocess
import sys

from histoblend.pipelines.runtime.resources import peak_memory


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
    code = "block = bytearray(90_000_000); block[::4096] = b'x' * len(block[::4096]); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child, peak_memory(0.01) as peak:
        before = peak()
        while peak() - before < 70 and child.poll() is None:
            pass
        child.communicate(b"\n", timeout=30)
    assert peak() - before >= 70
