"""The plan: keys of steps cover every module that can change their values, and a change rebuilds what it must."""

import ast
import inspect
from functools import cache

import pytest

from histoblend.pipelines.plan import STEPS
from histoblend.pipelines.runtime.provenance import ROOT, source_files

#: Modules that change no value, so that editing them rebuilds nothing. Each for its reason.
CHANGE_NO_VALUE = {
    "__init__.py": "the version",
    "data/errors.py": "words of errors",
    "pipelines/config.py": "the settings that count are in the key themselves",
    "pipelines/run.py": "asks for steps, in whatever way",
    "pipelines/runtime/artefacts.py": "keys and manifests",
    "pipelines/runtime/provenance.py": "digests of code and libraries",
    "pipelines/runtime/resources.py": "room on disk and in memory, which ends a step or does not",
    "pipelines/runtime/screen.py": "terminal output",
    "pipelines/runtime/signals.py": "stopping",
}


@cache
def imported(module):
    """Modules of ours that a module imports, wherever in it, but for what only type checkers read."""
    path = ROOT / f"{module}.py" if (ROOT / f"{module}.py").is_file() else ROOT / module / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inside) for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" for inside in ast.walk(node)
    }  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histoblend"):
            package = node.module.removeprefix("histoblend").strip(".").replace(".", "/")
            parts = [f"{package}/{alias.name}".strip("/") for alias in node.names]
            modules = [part for part in parts if (ROOT / f"{part}.py").is_file() or (ROOT / part).is_dir()]
            found |= set(modules) | ({package} if package and len(modules) < len(parts) else set())
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("histoblend.")]
            found |= {name.removeprefix("histoblend.").replace(".", "/") for name in names}
        # What is imported by its name: heads, and what a cluster's workers call.
        if isinstance(node, ast.Constant) and str(node.value).startswith("histoblend."):
            name = str(node.value).partition(":")[0].removeprefix("histoblend.").replace(".", "/")
            found |= {name} if (ROOT / f"{name}.py").is_file() else set()
    return frozenset(found)


def reached(module):
    """A module and all that it imports, over any number of steps; the exempt ones are not entered."""
    seen, left = set(), [module]
    while left:
        each = left.pop()
        if each in seen or f"{each}.py" in CHANGE_NO_VALUE:
            continue
        seen.add(each)
        left += imported(each)
    return {f"{each}.py" if (ROOT / f"{each}.py").is_file() else f"{each}/__init__.py" for each in seen}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_key_covers_every_module_that_can_change_its_values(step):
    module = inspect.getmodule(step.build).__name__.removeprefix("histoblend.").replace(".", "/")
    covered = {name for name, _ in source_files(step.code)}
    missing = {name for name in reached(module) - covered if not name.endswith("__init__.py")}
    assert not missing, f"{step.name} lacks {sorted(missing)}"
