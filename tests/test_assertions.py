"""Every test has an assertion: its own, or that of a helper which is named here with what it asserts."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OWN = ("raises", "warns", "fail")  # of pytest
# Beside `assert_...`, which says it by its name.
HELPERS = {
    "refusal": "the command or the reader refuses, with one line",
    "fails_with": "decoding raises an ImageError of this code",
    "wait_until": "the condition comes to hold",
}


def calls(function: ast.FunctionDef) -> set[str]:
    """Names that are called, without what they are an attribute of."""
    called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {name.attr if isinstance(name, ast.Attribute) else ast.unparse(name) for name in called}


def asserts(function: ast.FunctionDef) -> bool:
    if any(isinstance(node, ast.Assert) for node in ast.walk(function)):
        return True
    return any(name.startswith("assert_") or name in OWN or name in HELPERS for name in calls(function))


def without_assertion(source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [each.name for each in functions if each.name.startswith("test_") and not asserts(each)]


def test_every_test_asserts_something():
    found = {path.relative_to(TESTS): without_assertion(path.read_text()) for path in TESTS.rglob("test_*.py")}
    assert len(found) > 80
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("body", "is_good"),
    [
        ("run()", False),
        ("subprocess.run(command, check=True)", False),
        ("assert run()", True),
        ("with pytest.raises(OSError): run()", True),
        ("torch.testing.assert_close(run(), 1)", True),
        ("refusal('x')", True),
    ],
)
def test_a_test_without_one_is_found(body, is_good):
    assert without_assertion(f"def test_x():\n    {body}") == ([] if is_good else ["test_x"])
