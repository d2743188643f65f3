"""Options of make reach the command line as typed, with any characters. Unknown options are refused."""

import os
import shutil
import subprocess

import pytest

from tests import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

#: Texts that would run "touch caught" if make or the shell took them for code, and other difficult ones.
TEXTS = [
    "a' ; touch caught ; '", '" ; touch caught ; "', "x;touch caught", "x && touch caught", "x | touch caught",
    "x > caught", "$(shell touch caught)", "${shell touch caught}", "$(eval x:=$(shell touch caught))",
    "$(touch caught)", "`touch caught`", "a\ntouch caught", "a\r\ntouch caught\n", "a\\\ntouch caught",
    "'\ntouch caught\n'", "$(IN)", "$IN $$ $@", "${HOME}", "/x/O'Brien", "two  words", "'", '"', "\\", "a\\", "a\\'",
    "#a", "a,b)(", "%", "*", "~", "!x", "-x", "--help", "é\t＝",
]  # fmt: skip
OPTIONS = {
    "data": ("DATA", "MIRROR"),
    "baseline": ("CONFIG", "PRESET", "DATA", "RUN", "MISSING"),
    "report": ("CONFIG", "DATA", "RUN", "MISSING"),
    "predict": ("BUNDLE", "IN", "OUT", "SLIDES", "PREVALENCE", "MODEL", "POINT"),
    "heatmap": ("BUNDLE", "SLIDE", "OUT", "MPP", "PATCH_MPP", "STRIDE", "MODEL", "POINT"),
    "slide": ("OUT",),
    "compare": ("OUT",),
}


@pytest.fixture
def make(tmp_path):
    """Run make in a folder whose Python prints its arguments. Returns its words and the finished process."""
    folder = tmp_path / "O'Brien; touch caught"  # a user's folder may have any name
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    recorder = folder / "$(shell touch caught) python"
    recorder.write_text("""#!/bin/sh\nprintf '%s\\0' "$HISTOBLEND_TORTURE" "$@"\n""")
    recorder.chmod(0o755)

    def run(*words, **given):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            ["make", "-o", ".venv/.user", "-o", ".venv/.predict", "-o", ".venv/.dev", f"PY={recorder}", *words],
            cwd=folder, env=environment | given, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert not (folder / "caught").exists()
        return done.stdout.decode().split("\0")[:-1], done

    return run


@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.parametrize("given_by", ["command line", "environment"])
def test_an_option_arrives_as_typed(target, given_by, make):
    size = len(OPTIONS[target])
    for start in range(0, len(TEXTS), size):
        given = dict(zip(OPTIONS[target], TEXTS[start : start + size], strict=False))
        words = [f"{name}={text}" for name, text in given.items()]
        (_, *arguments), _ = make(target, *words) if given_by == "command line" else make(target, **given)
        assert arguments[:3] == ["-m", "histoblend.pipelines", target]
        arrived = dict(zip(arguments[3::2], arguments[4::2], strict=False))
        arrived.pop("--", None)  # the names of `data` and `compare` follow it
        assert arrived == {f"--{name.lower().replace('_', '-')}": text for name, text in given.items()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["baseline", "SET={}"], lambda words: [part for word in words for part in ("--set", word)]),
        (["predict", "EXPLAIN={}"], lambda words: [part for word in words for part in ("--explain", word)]),
        (["compare", "RUNS={}"], lambda words: ["--", *words]),
    ],
    ids=["SET", "EXPLAIN", "RUNS"],
)
def test_options_of_several_words_are_split_at_white_space_only(words, expected, make):
    text = "split.folds=4  seed=1 " + "\n".join(TEXTS)
    (_, _, _, _, *arguments), _ = make(*(word.format(text) if "{" in word else word for word in words))
    assert arguments == expected(text.split())


def test_switches_can_be_off(make):
    (*_, strict, rebuild), _ = make("baseline", "STRICT=1", "REBUILD=yes")
    assert (strict, rebuild) == ("--strict", "--rebuild")
    (_, *arguments), _ = make("baseline", "STRICT=0", "REBUILD=no")
    assert arguments == ["-m", "histoblend.pipelines", "baseline"]


def test_texts_are_no_code_elsewhere(make):
    """Arguments, clean-runs, and where the interpreter is looked for."""
    for text in TEXTS:
        (*_, sign, dataset), done = make(
            "data", "clean-runs", ".venv/.made", *(f"{name}={text}" for name in ("DATASET", "CONFIRM", "PYTHON")), "-k"
        )
        assert (sign, dataset) == ("--", text)
        (*_, sign, backbone), _ = make("weights", f"BACKBONE={text}")
        assert (sign, backbone) == ("--", text)
        assert f"error: Python 3.11 to 3.13 with venv is needed; {text} is" in done.stderr.decode()


def test_packages_are_compiled_when_first_used_except_in_the_image(tmp_path):
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-n", ".venv/.user"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (command,) = (line for line in done.stdout.splitlines() if "pip install" in line and "requirements.txt" in line)
    assert " --no-compile " in command
    # The user of the image cannot write compiled modules beside the libraries.
    assert "--no-compile" not in (ROOT / "Dockerfile").read_text()


def test_the_folder_may_have_any_name(make):
    words, _ = make("torture")
    assert words[0].endswith("/O'Brien; touch caught/.torture.jsonl")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["baseline", "CONFG=kaggle"], "make baseline has no option CONFG=. Did you mean CONFIG=?"),
        (["baseline", "config=kaggle"], "no option config=. Did you mean CONFIG=?"),
        (["prepare", "features", "DAT=x"], "make prepare features has no option DAT=. Did you mean DATA=?"),
        (["baseline", "IN=folder"], "no option IN=. Its options: CONFIG DATA MISSING PRESET REBUILD RUN SET STRICT."),
        (["heatmap", "SLIDES=x.svs"], "no option SLIDES=. Did you mean SLIDE=?"),
        (["compare", "RUN=a b"], "no option RUN=. Did you mean RUNS=?"),
        (["lint", "DATA=x"], "make lint has no option DATA=. Its options: none."),
        (["CONFG=kaggle"], "make help has no option CONFG=. Did you mean CONFIG=?"),
        (["baseline", "VENV=x; touch caught"], "no option VENV=."),
        (["baseline", "x';>caught;'=1"], "no option x';>caught;'=."),
        (["baseline", "X=$(shell touch caught)"], "no option X=."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_an_unknown_option_is_refused(words, message, make):
    recorded, done = make(*words)
    assert (recorded, done.returncode) == ([], 2)
    (said,) = done.stderr.decode().splitlines()
    assert message in said


def test_options_of_every_target_asked_for_are_known(make):
    _, done = make("baseline", "predict", "CONFIG=a", "RUN=b", "BUNDLE=c", "IN=d", "OUT=e", "PYTHON=python3")
    assert done.returncode == 0
    _, done = make("CONFIG=a")
    assert done.returncode == 0
