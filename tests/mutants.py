"""Mutation testing, ``make mutants``: make small changes to the code and see whether a test fails.

cosmic-ray proposes the changes. A seeded sample of them is tried for each module of tests/mutants.toml, on a copy of
the checkout. Each mutant runs in a fork of a process that has already imported the libraries, which takes less than
half the time of a new interpreter. The results are written to docs/mutants.md.
"""

import argparse
import ast
import difflib
import os
import random
import resource
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

SETTINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PAGE, COPY = ROOT / "docs" / "mutants.md", ROOT / "build" / "mutants"
BEGIN, END = "<!-- results: written by make mutants -->", "<!-- end of results -->"
#: An operator is replaced by another of the same group. Others mostly end in a TypeError, which any test notices.
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
#: Comparisons that give the same for None, True, False and small numbers.
SAME_COMPARISONS = {"Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot"}
#: Arguments that check or speed up correct code, but do not change its results.
WITHOUT_EFFECT = {"strict", "assume_unique", "cache", "nogil", "nthread"}
#: Decorators that only make a function faster.
FASTER = {"cache", "njit", "kernel", "inner_kernel", "fused_kernel", "intrinsic"}
#: Libraries that the tested modules and their tests import.
LIBRARIES = (
    "hypothesis", "numba", "numpy", "pandas", "pytest", "scipy.optimize", "scipy.special", "scipy.stats",
    "skimage.color", "skimage.feature", "sklearn.calibration", "sklearn.linear_model", "sklearn.metrics",
    "sklearn.model_selection", "sklearn.pipeline", "skops.io", "xgboost",
)  # fmt: skip
#: Tests stop at the first failure. The libraries are imported before pytest can rewrite their assertions.
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")

Position = tuple[int, int]


@dataclass(frozen=True)
class Mutant:
    """A changed module: the function that changed, the changed lines before and after, and the whole text."""

    function: str
    change: str
    code: str


def without_effect(tree: ast.Module) -> list[tuple[Position, Position]]:
    """Begin and end of code whose changes are not tried.

    These are imports, annotations, error messages, ``__all__``, arguments of decorators, the decorators in `FASTER` and
    the arguments in `WITHOUT_EFFECT`.
    """
    nodes: list[ast.AST | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Raise() | ast.Assign(targets=[ast.Name(id="__all__")]):
                nodes.append(node)
            case ast.arg() | ast.AnnAssign():
                nodes.append(node.annotation)
            case ast.FunctionDef() | ast.ClassDef():
                nodes += [*node.decorator_list, getattr(node, "returns", None)]
            case ast.keyword() if node.arg in WITHOUT_EFFECT:
                nodes.append(node)
    spans = [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in nodes if node]
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            name = decorator.func if isinstance(decorator, ast.Call) else decorator
            if {getattr(name, "id", ""), getattr(name, "attr", "")} & FASTER:
                spans.append(((decorator.lineno, 0), (decorator.end_lineno + 1, 0)))
    return spans


def function_at(tree: ast.Module, line: int) -> str:
    """Name of the innermost function or class that contains a line; "module" if there is none."""
    named = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    inside = [node for node in named if node.lineno <= line <= node.end_lineno]
    return max(inside, key=lambda node: node.lineno).name if inside else "module"


def is_tried(operator: str) -> bool:
    """Whether a kind of change is worth a try; "core/ReplaceBinaryOperator_Add_Sub" is an example of a name."""
    kind, _, change = operator.partition("_")
    old, _, new = change.partition("_")
    same_group = (old in ARITHMETIC) == (new in ARITHMETIC)
    return change not in SAME_COMPARISONS and ("BinaryOperator" not in kind or same_group)


def sample(code: str, most: int, seed: str) -> Iterator[Mutant]:
    """Draw mutants of a module: one at each of many random places, then a second at each, and so on."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    tree, nodes = ast.parse(code), list(ast_nodes(get_ast(code)))
    left_out = without_effect(tree)
    changes: dict[tuple[Position, Position], list[tuple[str, int]]] = {}
    for name in sorted(filter(is_tried, operator_names())):
        operator = get_operator(name)
        if operator.arguments():  # names of variables
            continue
        positions = (position for node in nodes for position in operator().mutation_positions(node))
        for occurrence, (begin, end) in enumerate(positions):
            if not any(first <= begin and end <= last for first, last in left_out):
                changes.setdefault((begin, end), []).append((name, occurrence))
    rng = random.Random(seed)  # noqa: S311
    places = [rng.sample(place, len(place)) for _, place in sorted(changes.items())]
    rng.shuffle(places)
    drawn = [(turn, change) for place in places for turn, change in enumerate(place)]
    for _, (name, occurrence) in sorted(drawn, key=lambda item: item[0])[:most]:
        try:
            text = mutate_code(code, get_operator(name)(), occurrence)
        except AttributeError:  # cosmic-ray cannot replace an exception with a dotted name
            continue
        old, new = code.splitlines(), text.splitlines()
        blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        _, first, last, new_first, new_last = next(block for block in blocks if block[0] != "equal")
        before, after = (" ".join(" ".join(lines).split()) for lines in (old[first:last], new[new_first:new_last]))
        yield Mutant(function_at(tree, first + 1), f"{before} → {after}", text)


def copy_checkout() -> None:
    """Copy the checkout with its compiled kernels, so that mutants never reach the original."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT, COPY, symlinks=True, ignore=shutil.ignore_patterns(".*", "runs", "build", "dist"))


def import_libraries() -> None:
    """Import the libraries, once for all mutants; modules and tests are imported in each fork, from the copy."""
    from hypothesis import Phase, settings

    settings.register_profile("mutants", database=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")
    for library in LIBRARIES:
        __import__(library)
    os.chdir(COPY)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "histoblend")]:
        del sys.modules[name]
    sys.path[:0] = [str(COPY / "src"), str(COPY)]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])


def tests_pass(tests: list[str], seconds: int) -> bool:
    """Whether all tests pass, in a fork that may take this many seconds of processor time and 16 GB."""
    child = os.fork()
    if not child:
        status = 1
        try:
            output = os.open(os.devnull, os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
            signal.alarm(20 * seconds)
            import pytest

            status = int(pytest.main([*OPTIONS, *tests]))
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def seconds_of_forks() -> float:
    """Processor time of all forks so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def try_mutants(module: str, tests: list[str], most: int, seed: int) -> tuple[int, list[Mutant]]:
    """Number of mutants tried, and those that no test noticed."""
    path = COPY / module
    code = path.read_text(encoding="utf-8")
    for _ in range(2):  # the first time, kernels may be compiled
        begun = seconds_of_forks()
        if not tests_pass(tests, 600):
            raise SystemExit(f"{module}: its tests must pass without a change. Run: pytest {' '.join(tests)}")
    limit = int(30 + 3 * (seconds_of_forks() - begun))
    sys.dont_write_bytecode = True
    mutants, survivors = list(sample(code, most, f"{seed} {module}")), []
    for mutant in mutants:
        path.write_text(mutant.code, encoding="utf-8")
        if tests_pass(tests, limit):
            survivors.append(mutant)
            print(f"survived: {mutant.function}: {mutant.change}", flush=True)
    path.write_text(code, encoding="utf-8")
    return len(mutants), survivors


def explanation(module: str, mutant: Mutant) -> dict[str, str] | None:
    """Entry of tests/mutants.toml that says why a mutant survives."""
    key = {"module": module, "function": mutant.function, "change": mutant.change}
    return next((entry for entry in SETTINGS["survivor"] if key.items() <= entry.items()), None)


def row(module: str, tried: int, survivors: list[Mutant]) -> str:
    """A module's row of the table."""
    entries = [explanation(module, mutant) for mutant in survivors]
    same = sum(entry is not None and entry["equivalent"] for entry in entries)
    killed, changed = tried - len(survivors), tried - same
    return f"| `{module}` | {tried} | {same} | {killed} | {changed - killed} | {100 * killed / changed:.0f} % |"


def page(text: str, rows: dict[str, str]) -> str:
    """Page with new rows of some modules, and all explained survivors."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")} | rows
    lines = ["| Module | Mutants | Equivalent | Killed | Survived | Killed, without equivalent |"]
    lines += ["|---|--:|--:|--:|--:|--:|", *(rows[name] for name in SETTINGS["tests"] if name in rows)]
    for heading, equivalent in (("Equivalent", True), ("Survived", False)):
        entries = [entry for entry in SETTINGS["survivor"] if entry["equivalent"] == equivalent]
        lines += ["", f"## {heading}", ""]
        lines += ["- {module}, `{function}`: `{change}`. {reason}".format(**entry) for entry in entries]
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"


def main() -> None:
    """Try mutants of some or all modules, and write the page."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("modules", nargs="*", metavar="module", help="default: all modules of tests/mutants.toml")
    parser.add_argument("--most", type=int, default=40, help="mutants per module (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.modules) - set(SETTINGS["tests"]))
    if unknown:
        parser.error(f"expected modules of tests/mutants.toml; got {', '.join(unknown)}.")
    copy_checkout()
    import_libraries()
    unexplained = 0
    for module in arguments.modules or SETTINGS["tests"]:
        tried, survivors = try_mutants(module, SETTINGS["tests"][module], arguments.most, arguments.seed)
        unexplained += sum(explanation(module, mutant) is None for mutant in survivors)
        new = {module: row(module, tried, survivors)}
        print(new[module], flush=True)
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), new), encoding="utf-8")
    if unexplained:
        raise SystemExit(f"{unexplained} mutants survived: add a test, or their reason to tests/mutants.toml.")


if __name__ == "__main__":
    main()
