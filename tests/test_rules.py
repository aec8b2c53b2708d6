"""The rules of the house: who may include or import what, and what the binary may hold."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from helpers import LEVELS

from subbit_infer import _native

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".inc", ".cu", ".cuh"))
PACKAGE = ROOT / "subbit_infer"


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def is_isa_file(path: Path) -> bool:
    return bool(re.search(r"_(avx2|avx512|avx512vbmi)\.(cpp|h)$", path.name))


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
            is_planner = name == "cuda/select.h" and path.name == "module.cpp"
            assert name.split("/")[0] in allowed[room] or is_planner


@pytest.mark.parametrize("path", [p for p in SOURCES if is_isa_file(p)], ids=lambda p: p.name)
def test_isa_files_use_no_library_code_that_the_linker_could_share(path):
    standard = {name for name in includes(path) if not name.startswith(("core/", "cpu/"))}
    assert standard <= {"immintrin.h", "cstdint"}


def test_isa_objects_export_only_their_kernels():
    objects = [p for p in (ROOT / "build").rglob("*.o") if re.search(r"_(avx2|avx512|avx512vbmi)\.cpp\.o$", p.name)]
    if not objects or shutil.which("nm") is None:
        pytest.skip("no build directory beside the sources")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in symbols.splitlines() if re.match(r"^[0-9a-f]+ [WVu] ", line)]
        assert weak == [], f"{path.name} has weak symbols"


def table() -> list[tuple[str, str]]:
    text = (CSRC / "cpu" / "kernels.inc").read_text()
    return re.findall(r"^SUBBIT_(?:ROWS|PATCHES|BITS|CODED_BITS)\((\w+), k(\w+),", text, re.MULTILINE)


def test_the_table_of_kernels_is_what_is_compiled():
    compiled = [name for name, _, _ in _native.kernels()]
    assert compiled == [name for name, _ in table()]
    assert {level.lower() for _, level in table()} <= set(LEVELS)
    for name, level in table():
        assert name.endswith(level.lower())


def imported_modules(path: Path) -> set[str]:
    """Names of the subbit_infer modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "subbit_infer":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subbit_infer."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("subbit_infer.")}
    return found


# What each module may import: one way, from left to right.
ORDER = [
    "_atomic", "codebook", "cost", "weight", "epilogue", "activations", "reference", "_cache", "_dispatch", "_native",
    "_cuda_device", "_cuda_plan", "_cuda_weight", "_cuda_check", "_cudnn", "_native_cuda", "_call", "operators",
    "_repeat", "ops", "nn", "_text", "explain", "recognize", "report", "models",
    "files", "compress", "swap", "graph", "convert", "checkpoint", "onnx", "cli", "__main__",
]  # fmt: skip


# The same within the packages, which are modules to everybody else.
PACKAGE_ORDERS = {
    "models": ["body", "fusion", "resnet", "vgg", "reactnet"],
    "files": ["header", "model", "info"],
    "cli": ["screen", "exported", "sources", "outputs", "convert", "info", "bench", "explain", "env", "app"],
    "swap": ["signs", "observe", "judge", "replace"],
    "graph": ["constants", "sites", "capture", "find", "fold", "signs", "dense", "layers", "rewrite"],
    "onnx": [
        "protos",
        "functions",
        "graphs",
        "rewrite",
        "layers",
        "program",
        "sessions",
        "unpacking",
        "exporting",
    ],
}


@pytest.mark.parametrize("module", [name for name in ORDER if name not in PACKAGE_ORDERS])
def test_imports_run_one_way(module):
    assert imported_modules(PACKAGE / f"{module}.py") - {"_C", "_C_cuda"} <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("package", PACKAGE_ORDERS)
def test_imports_of_packages_run_one_way(package):
    order = PACKAGE_ORDERS[package]
    assert {p.stem for p in (PACKAGE / package).glob("*.py")} - {"__init__"} == set(order)
    for place, module in enumerate(order):
        path = PACKAGE / package / f"{module}.py"
        assert imported_modules(path) <= {*ORDER[: ORDER.index(package)], package}
        inside = re.findall(rf"^from subbit_infer\.{package}\.(\w+) import", path.read_text(), re.MULTILINE)
        assert set(inside) <= set(order[:place])


def test_every_module_has_its_place():
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert modules - {"__init__"} == set(ORDER)


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == found


@pytest.mark.parametrize(("compiled", "toucher"), [("_C", "_native"), ("_C_cuda", "_native_cuda")])
def test_only_one_file_touches_a_compiled_module(compiled, toucher):
    assert [p.stem for p in PACKAGE.rglob("*.py") if compiled in imported_modules(p)] == [toucher]
    assert toucher not in imported_modules(PACKAGE / "reference.py")


def test_builds_never_depend_on_the_machine_they_run_on():
    assert "-march=native" not in (ROOT / "CMakeLists.txt").read_text()
