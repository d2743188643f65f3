"""Feeds damaged files to a reader for some seconds of core time, and continues after faults and native crashes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from histoblend.data.errors import InputError
from tests import ROOT

GUIDED = importlib.util.find_spec("atheris") is not None
CHILD = "HISTOBLEND_FUZZ"
#: Core time per input that counts as a fault.
SECONDS = 20
#: Limits per input at which libFuzzer ends the process. Its time also passes while other processes run.
STUCK_SECONDS, MEGABYTES = 600, 3000
#: Seed of the first child process. Each further child has the next seed.
SEED = 8
WORDS = [None, True, 0, -1, 1.5, 10**30, float("nan"), "", "../../etc/passwd", "x" * 300, "\0", "\ud800", [], {}, [[]]]

Reader = Callable[[bytes], None]
Mutator = Callable[[bytes, random.Random], bytes]


@contextlib.contextmanager
def instrumented(*packages: str) -> Iterator[None]:
    """Measure the coverage of packages imported in this context (by default all) in a fuzzing process."""
    if not (GUIDED and os.environ.get(CHILD)):
        yield
        return
    import atheris

    with atheris.instrument_imports(include=packages):
        yield


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Overwrite, insert, repeat and delete bytes at a few random positions."""
    altered = bytearray(content or b"\0")
    for _ in range(rng.randint(1, 6)):
        position = rng.randrange(len(altered) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            altered[position : position + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            altered[position : position + 4] = rng.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0"]
            )
        elif kind == 2:
            altered[position:position] = altered[position : position + rng.randint(1, 64)]
        elif kind == 3:
            altered[position : position + rng.randint(1, 16)] = b""
        else:
            altered[position:position] = rng.choice(
                [b'"', b",", b"\n", b"[", b"{", b"\0", b"\xff", b"nan", b"1e999", b"../"]
            )
    return bytes(altered[: rng.randrange(len(altered) + 1)] if rng.random() < 0.1 else altered)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Change a value of a JSON file, or remove a key. Other content is mutated as bytes."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, rng)
    for _ in range(rng.randint(1, 3)):
        value = _altered(value, rng)
    return json.dumps(value).encode()


def _altered(value: object, rng: random.Random) -> object:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        if rng.random() < 0.05:
            return {**value, rng.choice(["", "../x", "\0", "x"]): value[key]}
        return {**value, key: _altered(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:index] + value[index + 1 :]
        return [*value[:index], _altered(value[index], rng), *value[index + 1 :]]
    return copy.deepcopy(rng.choice(WORDS))


def survives(read: Reader, content: bytes) -> str:
    """Return "" if the reader soon accepts the content or refuses it with an ``InputError``, else what happened."""
    begun = time.process_time()
    try:
        read(content)
    except InputError:
        pass
    except BaseException:  # native code may raise something that is no Exception
        return traceback.format_exc()
    used = time.process_time() - begun
    return "" if used <= SECONDS else f"TimeoutError: the reader took {used:.0f} s of core time"


def main(module: str, read: Reader, seeds: Callable[[], list[bytes]], mutate: Mutator = mutate_bytes) -> None:
    """Fuzz for the core seconds and from the seed of the command line; the exit status is 1 if there was a fault.

    Child processes do the work, so a new child replaces one that native code crashed. The result is printed and
    recorded in the file that HISTOBLEND_TORTURE names.
    """
    if os.environ.get(CHILD):
        _work(read, seeds, mutate, Path(os.environ[CHILD]))
        return
    reader, first = module.rpartition(".")[2], int(sys.argv[2]) if len(sys.argv) > 2 else SEED
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{reader}-"))
    environment = {**os.environ, CHILD: str(folder), "TMPDIR": str(folder)}
    begun, crashes, children = time.monotonic(), 0, 0
    while (left := float(sys.argv[1]) - _core_seconds(resource.RUSAGE_CHILDREN)) > 1:
        command = [sys.executable, "-m", module, str(left), str(first + children)]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        children += 1
        if done.returncode:
            crashes += 1
            sys.stderr.write(f"the process died with {done.returncode}; see {folder}\n")
    row = {
        "reader": reader,
        "inputs": sum(int(path.read_text()) for path in folder.glob("tried-*")),
        "paths": len([path for path in folder.glob("corpus/*") if not path.name.startswith("seed-")]),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "processor_minutes": round(_core_seconds(resource.RUSAGE_CHILDREN) / 60, 1),
        "faults": len(list(folder.glob("fault-*.txt"))),
        "crashes": crashes,
        "how": f"coverage (atheris {importlib.metadata.version('atheris')})" if GUIDED else "mutations",
        "seeds": list(range(first, first + children)),
    }
    sys.stdout.write(f"{json.dumps(row)}, kept in {folder}\n")
    if records := os.environ.get("HISTOBLEND_TORTURE"):
        with Path(records).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.exit(bool(row["faults"] or crashes))


def _core_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _work(read: Reader, seeds: Callable[[], list[bytes]], mutate: Mutator, folder: Path) -> None:
    import warnings

    warnings.simplefilter("ignore")
    most, seed, count = float(sys.argv[1]), int(sys.argv[2]), 0
    tried = folder / f"tried-{os.getpid()}"

    def once(content: bytes) -> None:
        nonlocal count
        count += 1
        (folder / "last").write_bytes(content)
        if words := survives(read, content):
            _keep(folder, content, words)
        finished = _core_seconds(resource.RUSAGE_SELF) > most
        if count % 50 == 0 or finished:
            tried.write_text(str(count))
        if finished:
            os._exit(0)  # libFuzzer would not return

    start = seeds()
    if GUIDED:
        _guided(once, start, mutate, folder, seed)
    rng = random.Random(seed)  # noqa: S311 - no secret
    while True:
        once(mutate(rng.choice(start), rng))


def _guided(once: Reader, seeds: list[bytes], mutate: Mutator, folder: Path, seed: int) -> None:
    import atheris

    def mutated(content: bytes, most: int, draw: int) -> bytes:
        rng = random.Random(draw)  # noqa: S311 - no secret
        return mutate(content, rng)[:most] if rng.random() < 0.5 else atheris.Mutate(content, most)

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(content)
    limits = [
        f"-seed={seed}",
        f"-timeout={STUCK_SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
    ]
    longest = max(map(len, seeds)) + 4096
    atheris.Setup(
        [sys.argv[0], *limits, f"-max_len={longest}", "-verbosity=0", str(corpus)], once, custom_mutator=mutated
    )
    atheris.Fuzz()


def _keep(folder: Path, content: bytes, words: str) -> None:
    """Keep the first input of each fault. Faults differ by where they were raised."""
    frames = [line.strip() for line in words.splitlines() if line.startswith("  File ")][-3:]
    where = "\n".join([words.splitlines()[-1].split(":")[0], *frames])
    name = f"fault-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
    if not (folder / f"{name}.txt").exists():
        (folder / f"{name}.bin").write_bytes(content)
        (folder / f"{name}.txt").write_text(words)
        sys.stderr.write(words)
