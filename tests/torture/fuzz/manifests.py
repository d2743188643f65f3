"""Fuzzes the reader of manifests, and the check whether a step can be reused."""

import json
import tempfile
from pathlib import Path

from tests.torture.fuzz.driver import instrumented, main, mutate_json

with instrumented():
    from histoblend.pipelines.runtime.artefacts import (
        MANIFEST,
        StepResult,
        StepSpec,
        _finish_replacing,
        _plain,
        _why_not_reuse,
        read_manifest,
        run_step,
    )  # fmt: skip

SPEC = StepSpec(
    "features", "2-features", ("data/storage/arrays.py",), {"a": 1, "b": {"c": ["d"]}}, {"1-patches": "0" * 64}, 0
)
IDENTITY = _plain(SPEC.identity())
RUN = Path(tempfile.mkdtemp(prefix="fuzz-files-"))


def build(folder: Path) -> StepResult:
    (folder / "values.txt").write_text("abc")
    return StepResult(3, {"columns": ["a"], "seconds": {"colour": 0.5}})


def seeds() -> list[bytes]:
    folder, _ = run_step(SPEC, RUN, build, rebuild=True, say=lambda _line: None)
    whole = (folder / MANIFEST).read_bytes()
    other = json.loads(whole)
    return [whole, json.dumps({**other, "config": {"a": 2}}).encode(), json.dumps({**other, "seed": 1}).encode(), b"{}"]


def read(content: bytes) -> None:
    folder = RUN / SPEC.folder
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(content)
    assert isinstance(_why_not_reuse(folder, IDENTITY, True), str | None)
    _finish_replacing(RUN / "none", folder, IDENTITY)
    assert isinstance(read_manifest(folder), dict)
    _why_not_reuse(folder, IDENTITY, False)


if __name__ == "__main__":
    main("tests.torture.fuzz.manifests", read, seeds, mutate_json)
