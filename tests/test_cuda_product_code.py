"""The tensor cores' route as nvcc compiles it: registers, spills, shared memory, and the instructions there must be."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
# As in csrc/cuda/CMakeLists.txt.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Werror=all-warnings")
ARCHITECTURES = ("sm_80", "sm_90")


@dataclass(frozen=True)
class Budget:
    """Registers a thread at most, and how many tensor-core instructions a kernel has, of which kind."""

    registers: int
    products: int
    kind: str


BITS, HALVES, BFLOATS = "BMMA.168256.AND.POPC", "HMMA.16816.F32 ", "HMMA.16816.F32.BF16 "
# By file and by (kind of x, products of a stage of one warp). Two blocks of 128 threads leave each thread 255
# registers, four 128.
BUDGETS = {
    "product_b1": {
        "BitsKindILi1E.*TileILi4ELi8E": Budget(255, 64, BITS),
        "BitsKindILi1E.*TileILi2ELi2E": Budget(128, 8, BITS),
        "BitsKindILi2E.*TileILi4ELi4E": Budget(192, 64, BITS),
        "BitsKindILi2E.*TileILi2ELi2E": Budget(128, 16, BITS),
    },
    "product_half": {
        "HalvesKindI6__halfLi1E.*TileILi4ELi8E": Budget(255, 128, HALVES),
        "HalvesKindI6__halfLi1E.*TileILi2ELi2E": Budget(80, 8, HALVES),
        "HalvesKindI13__nv_bfloat16Li1E.*TileILi4ELi8E": Budget(255, 128, BFLOATS),
        "HalvesKindI13__nv_bfloat16Li1E.*TileILi2ELi2E": Budget(80, 8, BFLOATS),
    },
    "product_float": {
        "HalvesKindI13__nv_bfloat16Li3E.*TileILi4ELi4E": Budget(255, 192, BFLOATS),
        "HalvesKindI13__nv_bfloat16Li3E.*TileILi2ELi2E": Budget(96, 24, BFLOATS),
    },
}
CASES = [(file, architecture) for file in BUDGETS for architecture in ARCHITECTURES]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a file for an architecture, once: ptxas's report, and the machine code's file."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc found")
    folder = tmp_path_factory.mktemp("cubin")

    @cache
    def compile_one(file: str, architecture: str) -> tuple[str, Path]:
        cubin = folder / f"{file}.{architecture}.cubin"
        source = str(CSRC / "cuda" / f"{file}.cu")
        command = [nvcc, *FLAGS, f"-I{CSRC}", "-Xptxas=-v,-warn-spills", "-cubin", f"-arch={architecture}", source]
        done = subprocess.run([*command, "-o", str(cubin)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr, cubin

    return compile_one


def nvdisasm() -> str:
    packages = Path(sysconfig.get_path("purelib"))
    places = [shutil.which("nvdisasm"), *packages.glob("nvidia/*/bin/nvdisasm"), *packages.glob("triton/**/nvdisasm")]
    for place in places:
        if place is not None:
            return str(place)
    pytest.skip("no nvdisasm found (pip install nvidia-cuda-nvdisasm)")


@pytest.mark.parametrize(("file", "architecture"), CASES)
def test_registers_and_spills(compiled, file, architecture):
    report, _ = compiled(file, architecture)
    kernels = re.split(r"Compiling entry function '", report)[1:]
    assert len(kernels) == len(BUDGETS[file]), "a kernel without a budget"
    for pattern, budget in BUDGETS[file].items():
        (kernel,) = (k for k in kernels if re.match(rf"\S*{pattern}", k))
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in kernel, pattern
        assert int(re.search(r"Used (\d+) registers", kernel)[1]) <= budget.registers, pattern


@pytest.mark.parametrize(("file", "architecture"), CASES)
def test_products_are_instructions_and_nothing_is_called(compiled, file, architecture):
    """An emulated product is a call, and an array in local memory is LDL and STL."""
    _, cubin = compiled(file, architecture)
    code = subprocess.run([nvdisasm(), str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels = re.split(r"^\.text\.(?=\S+:$)", code, flags=re.MULTILINE)[1:]
    assert len(kernels) == len(BUDGETS[file])
    for pattern, budget in BUDGETS[file].items():
        (kernel,) = (k for k in kernels if re.match(rf"\S*{pattern}", k))
        assert kernel.count(budget.kind) == budget.products, pattern
        assert kernel.count("MMA.") == budget.products, pattern
        assert not re.search(r"\b(LDL|STL)\b", kernel), pattern
        # A label of the kernel itself is no function: for sm_80 loops with products end in such a jump.
        assert not re.search(r"\bCALL\S* `\((?!\.L_x_)", kernel), pattern
