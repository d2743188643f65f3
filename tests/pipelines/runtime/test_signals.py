"""The last message of a run that is stopped."""

import signal
import subprocess
import sys

import pytest

from tests import ROOT

SILENCED = """
import os, time
from histoblend.pipelines.runtime.signals import set_step, stop_on_signals
stop_on_signals()
set_step("cnn")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_the_message_is_shown_while_libraries_are_silenced(number, name):
    command = [sys.executable, "-c", SILENCED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 128 + number
    assert (
        f"stopped ({name}): finished steps and shards are kept. Run the same command again to resume at step 'cnn'."
        in said
    )
