"""Mutation testing: what is tried, the settings, and the page."""

import pytest

from tests import ROOT, mutants

CODE = '''"""Text with 1 + 1."""

__all__ = ["f"[0:1]]
LIMIT: "1 + 1" = 3


@cache
@decorate(2)
def f(x: 4 | 5 = 6) -> 7 | 8:
    if x > 9:
        raise ValueError(f"{x + 1}")
    return zip(x, x, strict=True)
'''


def test_changes_without_an_effect_are_not_tried():
    pytest.importorskip("cosmic_ray")
    tried = list(mutants.sample(CODE, 100, "seed"))
    assert {mutant.change.split(" → ")[0] for mutant in tried} == {
        'LIMIT: "1 + 1" = 3',
        "def f(x: 4 | 5 = 6) -> 7 | 8:",
        "if x > 9:",
        "@decorate(2)",
    }
    assert {mutant.function for mutant in tried} == {"module", "f"}
    compared = {mutant.change.split(" → ")[1] for mutant in tried if "9" in mutant.change}
    assert {"if x >= 9:", "if not x > 9:", "if x > 10:", "if x > 8:"} <= compared
    for mutant in tried:
        compile(mutant.code, "mutant", "exec")
        assert mutant.code != CODE


def test_every_place_is_tried_once_before_any_is_tried_twice():
    pytest.importorskip("cosmic_ray")
    changes = [mutant.change for mutant in mutants.sample(CODE, 5, "seed")]
    assert len({change.split(" → ")[0] for change in changes}) == 4
    assert changes == [mutant.change for mutant in mutants.sample(CODE, 5, "seed")]


@pytest.mark.parametrize(
    ("operator", "tried"),
    [
        ("core/ReplaceBinaryOperator_Add_Sub", True),
        ("core/ReplaceBinaryOperator_Add_BitOr", False),
        ("core/ReplaceBinaryOperator_BitOr_BitAnd", True),
        ("core/ReplaceComparisonOperator_Eq_Is", False),
        ("core/ReplaceComparisonOperator_Is_IsNot", True),
        ("core/NumberReplacer", True),
    ],
)
def test_operators_are_exchanged_within_their_group(operator, tried):
    assert mutants.is_tried(operator) is tried


@pytest.mark.parametrize("module", mutants.SETTINGS["tests"])
def test_modules_and_their_tests_exist(module):
    assert (ROOT / module).is_file()
    assert all((ROOT / name).is_file() for name in mutants.SETTINGS["tests"][module])


@pytest.mark.parametrize("entry", mutants.SETTINGS["survivor"], ids=lambda entry: entry["change"])
def test_an_explained_survivor_changes_a_line_of_today(entry):
    lines = [" ".join(line.split()) for line in (ROOT / entry["module"]).read_text(encoding="utf-8").splitlines()]
    assert entry["change"].split(" → ")[0] in " ".join(lines)
    assert entry["reason"].endswith(".")


def test_the_page_keeps_the_rows_of_other_modules():
    first, second = list(mutants.SETTINGS["tests"])[:2]
    text = f"Before.\n{mutants.BEGIN}\n{mutants.END}\nAfter.\n"
    text = mutants.page(text, {second: f"| `{second}` | 5 |"})
    text = mutants.page(text, {first: f"| `{first}` | 1 |"})
    text = mutants.page(text, {first: f"| `{first}` | 2 |"})
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        f"| `{first}` | 2 |",
        f"| `{second}` | 5 |",
    ]
