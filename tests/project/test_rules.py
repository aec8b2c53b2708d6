"""The rules of the house: who may include or import what, and what the binary may hold."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import LEVELS

from subbit_infer.backends import native

ROOT = Path(__file__).parent.parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".inc", ".cu", ".cuh"))
PACKAGE = ROOT / "subbit_infer"


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def is_isa_file(path: Path) -> bool:
    return bool(re.search(r"(^|_)(avx2|avx512|avx512vbmi)\.(cpp|h)$", path.name))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes(path):
    room = path.relative_to(CSRC).parts[0]
    for name in includes(path):
        assert ("immintrin" in name) <= is_isa_file(path), "only ISA files include <immintrin.h>"
        assert ("pybind11" in name or "Python.h" in name) <= (room == "python"), "only csrc/python knows Python"
        assert "torch" not in name, "nothing includes torch"
        assert ("cuda_" in name) <= (room == "cuda"), "only csrc/cuda knows CUDA's headers"
        if name.startswith(("core/", "cpu/", "cuda/", "python/")):
            allowed = {"core": {"core"}, "cpu": {"core", "cpu"}, "cuda": {"core", "cuda"}}
            allowed["python"] = {"core", "python", "cuda" if path.name == "module_cuda.cpp" else "cpu"}
            # The planner has no kernels in it: machines without nvcc have it too, and test it.
            is_planner = name == "cuda/planner/select.h" and path.name == "module.cpp"
            assert name.split("/")[0] in allowed[room] or is_planner


@pytest.mark.parametrize("path", [p for p in SOURCES if is_isa_file(p)], ids=lambda p: str(p.relative_to(CSRC)))
def test_isa_files_use_no_library_code_that_the_linker_could_share(path):
    standard = {name for name in includes(path) if not name.startswith(("core/", "cpu/"))}
    assert standard <= {"immintrin.h", "cstdint"}


def test_isa_objects_export_only_their_kernels():
    objects = [p for p in (ROOT / "build").rglob("*.o") if re.search(r"(^|_)(avx2|avx512|avx512vbmi)\.cpp\.o$", p.name)]
    if not objects or shutil.which("nm") is None:
        assert "CI" not in os.environ, "CI builds beside the sources, and has binutils"
        pytest.skip("no build directory beside the sources")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in symbols.splitlines() if re.match(r"^[0-9a-f]+ [WVu] ", line)]
        assert weak == [], f"{path.name} has weak symbols"


def table() -> list[tuple[str, str]]:
    text = (CSRC / "cpu" / "kernels.inc").read_text()
    return re.findall(r"^SUBBIT_(?:ROWS|PATCHES|BITS|CODED_BITS)\((\w+), k(\w+),", text, re.MULTILINE)


def test_the_table_of_kernels_is_what_is_compiled():
    compiled = [name for name, _, _ in native.kernels()]
    assert compiled == [name for name, _ in table()]
    assert {level.lower() for _, level in table()} <= set(LEVELS)
    for name, level in table():
        assert name.endswith(level.lower())


FLOORS = ["core", "backends", "ops", "nn", ("conversion", "diagnostics", "models", "training"), "formats", "cli"]
"""The floors of the package, from the ground up: a folder imports its own modules and those of lower floors."""


def floor_of(module: str) -> int:
    """The floor of a module's folder, by its dotted name without ``subbit_infer``."""
    folder = module.split(".")[0]
    return next(number for number, floor in enumerate(FLOORS) if folder == floor or folder in floor)


def imported_modules(path: Path) -> set[str]:
    """Dotted names, without ``subbit_infer``, of what a file imports from the package, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "subbit_infer":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subbit_infer."):
            base = str(node.module).removeprefix("subbit_infer.")
            found |= {f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("subbit_infer.") for a in node.names if a.name.startswith("subbit_infer.")}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


INSIDE = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


@pytest.mark.parametrize("path", INSIDE, ids=module_of)
def test_imports_never_go_up(path):
    own = module_of(path)
    for name in imported_modules(path):
        if name in ("_C", "_C_cuda"):
            assert own.split(".")[0] == "backends"
        elif name.split(".")[0] != own.split(".")[0]:
            is_entry = own == "cli.env" or own.startswith("cli.")
            top = {"files", "models", "nn", "onnx", "conv", "pack"}
            assert (is_entry and name in top) or floor_of(name) < floor_of(own), f"{own} imports {name}"


def test_imports_have_no_circle():
    imports = {module_of(p): imported_modules(p) for p in INSIDE}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done or module not in imports:
            return
        for name in imports[module]:
            visit(name, (*path, module))
        done.add(module)

    for module in imports:
        visit(module, ())


def test_there_are_few_entries_besides_the_floors():
    folders = {name for floor in FLOORS for name in ([floor] if isinstance(floor, str) else floor)}
    entries = {p.name for p in PACKAGE.iterdir() if not re.search(r"__pycache__|\.so$", p.name)}
    assert folders <= entries
    assert len(entries - folders) <= 8


def test_every_folder_is_a_package():
    assert all((p.parent / "__init__.py").exists() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize(("compiled", "toucher"), [("_C", "backends.native"), ("_C_cuda", "backends.cuda.runtime")])
def test_only_one_file_touches_a_compiled_module(compiled, toucher):
    assert [module_of(p) for p in PACKAGE.rglob("*.py") if compiled in imported_modules(p)] == [toucher]


def test_builds_never_depend_on_the_machine_they_run_on():
    assert "-march=native" not in (ROOT / "CMakeLists.txt").read_text()
