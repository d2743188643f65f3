"""Functions with which workers fail. In a separate module, so that workers import little."""

import errno
import os
import signal

from histoblend.data.errors import InputError

WORDS = "patches must be readable; got others."


def refuse(*_arguments):
    raise InputError(WORDS)


def run_out_of_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "values.npy")


def run_out_of_memory(*_arguments):
    raise MemoryError("Unable to allocate 9 GB")


def be_killed(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)
