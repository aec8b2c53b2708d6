"""The lists of tests that ``make test`` leaves out name tests that there are."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
LISTS = runpy.run_path(str(TESTS / "conftest.py"))


def names_of(body: list[ast.stmt], prefix: str = "") -> list[str]:
    """Names as pytest has them: "test_one", "TestSome", "TestSome::test_two"."""
    names = []
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            names += [prefix + node.name, *names_of(node.body, f"{prefix}{node.name}::")]
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            names.append(prefix + node.name)
    return names


@pytest.mark.parametrize("entry", [*LISTS["SLOW"], *LISTS["SAMPLED"]])
def test_every_entry_names_tests(entry):
    file, _, name = entry.partition("::")
    assert (TESTS / file).is_file()
    found = names_of(ast.parse((TESTS / file).read_text()).body)
    assert [test for test in found if test.startswith(name)] != []
