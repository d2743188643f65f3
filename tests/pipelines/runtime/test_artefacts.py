"""Artefacts: reused only on an equal key, refused on another configuration, never half-written."""

import json
from dataclasses import replace

import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.runtime.artefacts import StepResult, StepSpec, read_manifest, run_step

SPEC = StepSpec(
    "features", "2-features", ("data",), {"families": ["colour"], "depth": {"a": 1}}, {"1-patches": "d1"}, 0
)


class Builder:
    """Counts its builds, writes ``content``, and fails if ``breaks`` is set."""

    def __init__(self, content="x", breaks=False):
        self.calls, self.content, self.breaks, self.names = 0, content, breaks, []

    def __call__(self, folder):
        self.calls += 1
        self.names = sorted(path.name for path in folder.iterdir())
        (folder / "values.txt").write_text(self.content)
        if self.breaks:
            raise OSError("disk full")
        return StepResult(3, {"note": 1})


def run(tmp_path, builder, spec=SPEC, rebuild=False):
    said = []
    folder, manifest = run_step(spec, tmp_path, builder, rebuild=rebuild, say=said.append)
    return folder, manifest, said


def test_an_equal_key_is_reused_and_reported(tmp_path):
    builder = Builder()
    folder, manifest, _ = run(tmp_path, builder)
    again, same, said = run(tmp_path, builder)
    assert builder.calls == 1
    assert (again, same) == (folder, manifest)
    assert said == [f"features: up to date (3 rows, {folder})"]


def test_the_manifest_tells_how_it_was_made(tmp_path):
    folder, _, _ = run(tmp_path, Builder())
    manifest = read_manifest(folder)
    assert manifest["rows"] == 3
    assert manifest["config"] == SPEC.config
    assert manifest["seed"] == 0
    assert manifest["inputs"] == {"1-patches": "d1"}
    assert manifest["files"].keys() == {"values.txt"}
    assert manifest["libraries"]["numpy"].count(".") == 2
    assert manifest["peak_mb"] > 10
    assert {"seconds", "made", "commit", "python", "machine"} <= manifest.keys()
    assert not (tmp_path / "2-features.partial").exists()


def test_another_configuration_is_refused_naming_the_difference(tmp_path):
    run(tmp_path, Builder("old"))
    other = replace(SPEC, config={"families": ["colour"], "depth": {"a": 2}}, seed=1)
    with pytest.raises(InputError, match=r"depth.a was 1, is now 2; seed was 0, is now 1\. Choose another run name"):
        run(tmp_path, Builder("new"), other)
    assert (tmp_path / "2-features" / "values.txt").read_text() == "old"
    _, _, said = run(tmp_path, Builder("new"), other, rebuild=True)
    assert (tmp_path / "2-features" / "values.txt").read_text() == "new"
    assert said == ["features: rebuilding (depth.a was 1, is now 2; seed was 0, is now 1)"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(SPEC, inputs={"1-patches": "d2"}), "features: rebuilding, its input changed"),
        (replace(SPEC, sources=("data", "features")), "features: rebuilding, its code changed"),
    ],
)
def test_a_changed_input_or_code_rebuilds(tmp_path, spec, words):
    builder = Builder()
    run(tmp_path, builder)
    assert run(tmp_path, builder, spec)[2] == [words]
    assert builder.calls == 2


def test_files_of_the_operating_system_are_ignored(tmp_path):
    class Littered(Builder):
        def __call__(self, folder):
            for name in (".DS_Store", "Thumbs.db", ".ipynb_checkpoints/values.txt"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)
            return super().__call__(folder)

    _, clean, _ = run(tmp_path / "clean", Builder())
    folder, manifest, _ = run(tmp_path / "littered", Littered())
    assert manifest["files"] == clean["files"]
    assert manifest["digest"] == clean["digest"]
    (folder / ".DS_Store").write_text("moved")
    (folder / "Thumbs.db").unlink()
    (folder / "desktop.ini").write_text("")
    assert run(tmp_path / "littered", Littered())[2] == [f"features: up to date (3 rows, {folder})"]


def test_an_altered_file_is_detected_and_rebuilt(tmp_path):
    builder = Builder("abc")
    folder, first, _ = run(tmp_path, builder)
    (folder / "values.txt").write_text("abd")
    _, second, said = run(tmp_path, builder)
    assert said == ["features: rebuilding, values.txt is missing or altered"]
    assert (folder / "values.txt").read_text() == "abc"
    assert first["digest"] == second["digest"]


def test_an_interrupted_run_leaves_no_result_and_is_resumed_for_the_same_key_only(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, Builder(breaks=True))
    assert not (tmp_path / "2-features").exists()
    same = Builder()
    run(tmp_path, same)
    assert same.names == ["key.json", "values.txt"]
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, Builder(breaks=True), replace(SPEC, inputs={"1-patches": "d2"}))
    other = Builder()
    run(tmp_path, other, replace(SPEC, inputs={"1-patches": "d3"}))
    assert other.names == ["key.json"]


def test_a_step_that_fails_before_any_result_leaves_nothing(tmp_path):
    def refuse(folder):
        (folder / "chunks").mkdir()
        raise InputError("wrong data")

    with pytest.raises(InputError, match="wrong data"):
        run(tmp_path, refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_is_reported(tmp_path):
    folder, sound, _ = run(tmp_path, Builder())
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="expected JSON"):
        run(tmp_path, Builder())
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="expected a finished step"):
        run(tmp_path, Builder())
    for damaged in ([], {**sound, "files": ["values.txt"]}, {**sound, "config": 1}, {**sound, "notes": None}):
        (folder / "manifest.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"expected the manifest of a step.*--rebuild"):
            run(tmp_path, Builder())
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="expected JSON"):
        run(tmp_path, Builder())
    assert run(tmp_path, Builder(), rebuild=True)[2] == ["features: rebuilding, its manifest is unreadable"]


def test_the_manifest_digest_follows_the_files(tmp_path):
    digests = set()
    for content in ("a", "b"):
        folder, manifest, _ = run(tmp_path / content, Builder(content))
        digests.add(manifest["digest"])
        assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert len(digests) == 2
