"""The plan: keys of steps cover every module that can change values, and a change rebuilds the right steps."""

import ast
import shutil
from functools import cache
from pathlib import Path

import pytest

from histoblend.models.names import TABLES
from histoblend.pipelines.commands import one_step, warn_of_left_out
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import ENSEMBLE_ONLY, LEARNING, STEPS, plan_run
from histoblend.pipelines.run_files import CURVE
from histoblend.pipelines.runtime import provenance
from histoblend.pipelines.runtime.provenance import ROOT, code_digest, source_files
from histoblend.pipelines.steps import patches

#: Modules that cannot change values, so that a change in them rebuilds nothing, and the reason for each.
CHANGE_NO_VALUE = {
    "__init__.py": "the version",
    "data/errors.py": "error messages",
    "data/workers.py": "number of workers",
    "pipelines/config.py": "the relevant settings are part of the key",
    "pipelines/config_files.py": "likewise",
    "pipelines/run.py": "only runs the steps",
    "pipelines/runtime/artefacts.py": "keys and manifests",
    "pipelines/runtime/provenance.py": "digests of code and libraries",
    "pipelines/runtime/resources.py": "checks of disk and memory, which can only stop a step",
    "pipelines/runtime/screen.py": "terminal output",
    "pipelines/runtime/signals.py": "stopping",
}


@cache
def imported(module):
    """Modules of this package that a module imports anywhere, except for type checking only."""
    path = ROOT / f"{module}.py" if (ROOT / f"{module}.py").is_file() else ROOT / module / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inside) for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" for inside in ast.walk(node)
    }  # fmt: skip
    modules_ = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histoblend"):
            package = node.module.removeprefix("histoblend").strip(".").replace(".", "/")
            parts = [f"{package}/{alias.name}".strip("/") for alias in node.names]
            modules = [part for part in parts if (ROOT / f"{part}.py").is_file() or (ROOT / part).is_dir()]
            modules_ |= set(modules) | ({package} if package and len(modules) < len(parts) else set())
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("histoblend.")]
            modules_ |= {name.removeprefix("histoblend.").replace(".", "/") for name in names}
        # Modules that are imported by name: heads, and functions that cluster workers call.
        if isinstance(node, ast.Constant) and str(node.value).startswith("histoblend."):
            name = str(node.value).partition(":")[0].removeprefix("histoblend.").replace(".", "/")
            modules_ |= {name} if (ROOT / f"{name}.py").is_file() else set()
    return frozenset(modules_)


def reached(module):
    """A module and all modules that it imports directly or indirectly, without the exempt ones."""
    done, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name in done or f"{name}.py" in CHANGE_NO_VALUE:
            continue
        done.add(name)
        pending += imported(name)
    return {f"{name}.py" if (ROOT / f"{name}.py").is_file() else f"{name}/__init__.py" for name in done}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_key_covers_every_module_that_can_change_its_values(step):
    module = step.build.partition(":")[0].replace(".", "/")
    covered = {name for name, _ in source_files(step.code)}
    missing = {name for name in reached(module) - covered if not name.endswith("__init__.py")}
    assert not missing, f"{step.name} lacks {sorted(missing)}"


@pytest.fixture
def other_code(tmp_path, monkeypatch):
    """A function that makes keys refer to a copy of the package with one changed file."""

    def change(name):
        copy = tmp_path / name.replace("/", "-") / "histoblend"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write("\n")
        monkeypatch.setattr(provenance, "ROOT", copy)

    return change


@pytest.mark.parametrize(
    ("name", "rebuilt"),
    [
        ("reports/templates/style.css", {"report"}),
        ("reports/sections/verdict.py", {"sections"}),
        ("reports/model_card.py", {"bundle", "sections"}),
        ("pipelines/analysis/leakage.py", {"leakage", "sections"}),
        ("pipelines/steps/cnn_training.py", {"cnn", "learning-network"}),
        ("features/handcrafted/plain_names.py", {"sections"}),
        ("features/handcrafted/catalogue.py", set()),
        ("pipelines/engine/worker.py", {*TABLES, "heads", "centres", "refit"}),
        ("pipelines/runtime/screen.py", set()),
        ("pipelines/config.py", set()),
    ],
)
def test_a_change_affects_only_the_keys_of_these_steps(other_code, name, rebuilt):
    before = {step.name: code_digest(step.code) for step in STEPS}
    other_code(name)
    assert {step.name for step in STEPS if code_digest(step.code) != before[step.name]} == rebuilt


def test_steps_read_earlier_steps_and_have_separate_folders():
    names = [step.name for step in STEPS]
    for number, step in enumerate(STEPS):
        assert set(step.reads) <= set(names[:number]), step.name
    assert len({step.folder for step in STEPS}) == len(STEPS)
    assert all(callable(step.builder) for step in STEPS)


def test_the_shortcut_meter_depends_on_the_sets_that_it_measures():
    step = next(step for step in STEPS if step.name == "shortcuts")
    colour, both = (
        load_config(Path("phantom"), [f"heads.features={sets}"]) for sets in ("['colour']", "['colour', 'both']")
    )
    assert step.settings(colour) != step.settings(both)


def test_a_data_card_is_not_a_setting_of_any_step_and_rebuilds_only_the_sections(tmp_path):
    plain, stated = (
        plan_run(load_config(Path("phantom"), settings), tmp_path) for settings in ([], ["data.card.tissue=breast"])
    )
    assert all(step.settings(plain.config) == step.settings(stated.config) for step in STEPS)
    # The sections alone have the shown configuration among their inputs; those of other steps are read from results.
    sections = next(step for step in STEPS if step.name == "sections")
    assert sections.inputs(plain) != sections.inputs(stated)
    assert [step.name for step in STEPS if step.inputs is sections.inputs] == ["sections"]
    assert patches.inputs(plain) == patches.inputs(stated)


def test_a_changed_style_sheet_rebuilds_only_the_page(tmp_path, other_code, capsys):
    settings = [
        "data.n=120",
        "data.slides=12",
        "split.folds=2",
        "final.refit=train",
        "report.draws=100",
        "report.repeats=1",
        "engine.workers=1",
    ]
    settings += ["features.families=['colour']", "heads.features=['handcrafted','context']", "name=small"]
    config = load_config(Path("phantom"), settings)
    one_step(plan_run(config, tmp_path), "report")
    page = tmp_path / "small" / "7-report" / "report.html"
    text = page.read_text(encoding="utf-8")
    capsys.readouterr()
    other_code("reports/templates/style.css")
    run = plan_run(config, tmp_path)
    one_step(run, "report")
    output = capsys.readouterr().out
    reused = {step.name for step in STEPS if f"{step.name}: up to date" in output}
    assert "report: rebuilding, its code changed" in output
    assert reused == {step.name for step in STEPS if run.has(step.name)} - {"report"}
    assert page.read_text(encoding="utf-8").count("<section") == text.count("<section")


def test_left_out_learning_curves_are_named(tmp_path, capsys):
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", []), tmp_path)
    run.leave_out(ENSEMBLE_ONLY)
    folder = run.folder / run.plan[LEARNING].folder
    folder.mkdir(parents=True)
    warn_of_left_out(run)
    assert "".join(capsys.readouterr()) == ""  # a finished step without curves
    (folder / CURVE).touch()
    warn_of_left_out(run)
    assert "learning curves: `make report` includes them again" in "".join(capsys.readouterr())
    run.leave_out(())
    warn_of_left_out(run)
    assert "".join(capsys.readouterr()) == ""
