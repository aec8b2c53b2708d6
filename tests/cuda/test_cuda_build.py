"""The build of the CUDA kernels: its options; registers, memory and instructions of the machine code. Needs no device.

tests/data/cuda_budget.json holds, for each kernel: the threads of its largest block, the registers that a thread may
use, the static shared memory in bytes (sm_90 keeps 1024 for itself), how many of which instructions must be there,
and, where it is not compiled for all, for which architectures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BUDGET = json.loads((Path(__file__).parent.parent / "data" / "cuda_budget.json").read_text())
ARCHITECTURES = ("sm_80", "sm_90")  # cuobjdump lists what is for sm_90a alone with sm_90
MULTIPROCESSOR_REGISTERS = 65536


def tool_directories() -> list[Path]:
    """Where pip installs the toolkit's binaries, and triton's copies."""
    roots = [Path(root) for root in sys.path if root.endswith("site-packages")]
    places = ("nvidia/cu*/bin", "nvidia/cuda_*/bin", "triton/backends/nvidia/bin")
    return [found for root in roots for place in places for found in sorted(root.glob(place))]


@pytest.fixture(scope="module")
def cuobjdump():
    """Lists something of the built module, for one architecture, or of another file."""
    module = importlib.util.find_spec("subbit_infer._C_cuda")
    if module is None or module.origin is None:
        pytest.skip("the CUDA kernels are not built: no nvcc")
    path = os.pathsep.join([*map(str, tool_directories()), os.environ["PATH"]])
    if shutil.which("cuobjdump", path=path) is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("no cuobjdump and nvdisasm (packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm)")

    def run(*arguments: str, file: str | Path = str(module.origin)) -> str:
        command = [str(shutil.which("cuobjdump", path=path)), *arguments, str(file)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
        ).stdout

    return run


def readable(symbols: list[str]) -> list[str]:
    """Demangled names without namespaces, parameters and casts: "sharing_kernel<Sharing<0, 4, false>>"."""
    names = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return [
        re.sub(r"^void |\((?:subbit::)?\w+\)(?=\d)|subbit::|\(anonymous namespace\)::|\([^()]*\)$| (?=>)", "", name)
        for name in names.splitlines()
    ]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def machine_code(architecture, cuobjdump) -> dict[str, dict]:
    """For each kernel of an architecture: registers, stack and local memory in bytes, and the text of its code."""
    usage = cuobjdump("-arch", architecture, "-res-usage")
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    code = dict(
        re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function : |\Z)", cuobjdump("-arch", architecture, "-sass"), re.S)
    )
    kernels = [(symbol, *map(int, sizes)) for symbol, *sizes in found if symbol in code]
    fields = "registers", "stack", "shared", "local", "code"
    return {
        name: dict(zip(fields, (*sizes, code[symbol]), strict=True))
        for name, (symbol, *sizes) in zip(readable([k[0] for k in kernels]), kernels, strict=True)
    }


def test_every_kernel_has_a_budget(architecture, machine_code):
    compiled = {name for name, budget in BUDGET.items() if architecture in budget.get("architectures", ARCHITECTURES)}
    assert set(machine_code) == compiled


def test_later_architectures_have_the_ptx_of_every_kernel(cuobjdump):
    """Of every kernel that they may choose: the last architecture's, which they compile when it is loaded."""
    entries = re.findall(r"\.entry (\w+)\(", cuobjdump("-arch", ARCHITECTURES[-1], "-ptx"))
    assert set(readable(entries)) == {name for name in BUDGET if "Wgmma" not in name}  # Hopper's alone


def test_registers_are_within_the_budget(machine_code):
    used = {name: (kernel["registers"], BUDGET[name]["registers"]) for name, kernel in machine_code.items()}
    assert {name: pair for name, pair in used.items() if pair[0] > pair[1]} == {}


def test_static_shared_memory_is_within_the_budget(machine_code):
    assert [name for name, kernel in machine_code.items() if kernel["shared"] > BUDGET[name]["shared"]] == []


def test_blocks_fit_the_registers_of_a_multiprocessor():
    for name, budget in BUDGET.items():
        assert budget["registers"] * budget["threads"] <= MULTIPROCESSOR_REGISTERS, name


def test_nothing_goes_to_local_memory(machine_code):
    for name, kernel in machine_code.items():
        assert (kernel["stack"], kernel["local"]) == (0, 0), name
        assert re.search(r"\b(LDL|STL)\b", kernel["code"]) is None, name


def test_nothing_is_called(machine_code):
    """What a chip lacks (a 64-bit division, an XOR product on sm_90) would be a call of an emulation, which returns.

    On sm_80 a CALL without a RET is a branch: ptxas leaves loops by CALL.REL.NOINC.
    """
    for name, kernel in machine_code.items():
        assert re.search(r"\b(RET|CALL\.ABS)\b", kernel["code"]) is None, name


def test_the_instructions_that_the_kernels_are_made_for_are_there(machine_code):
    for name, kernel in machine_code.items():
        for instruction, least in BUDGET[name]["instructions"].items():
            assert len(re.findall(rf"\b{re.escape(instruction)}\b", kernel["code"])) >= least, (name, instruction)


@pytest.mark.parametrize("later", ["sm_100", "sm_103", "sm_120"])
def test_int8_products_are_native_on_later_architectures(cuobjdump, tmp_path, later):
    """What becomes of the PTX there, by ptxas as by a driver."""
    ptxas = shutil.which("ptxas")
    if ptxas is None or later not in subprocess.run([ptxas, "--help"], capture_output=True, text=True).stdout:
        pytest.skip(f"no ptxas that knows {later}")
    listed = cuobjdump("-arch", ARCHITECTURES[-1], "-ptx")
    modules = re.findall(r"^\.version.*?(?=^Fatbin|\Z)", listed, re.M | re.S)
    (ptx,) = [module for module in modules if "NumbersKindIa" in module]  # of signed char
    source, result = tmp_path / "int8.ptx", tmp_path / "int8.cubin"
    source.write_text(ptx)
    command = [ptxas, f"-arch={later}", "-warn-spills", "-warn-lmem-usage", "-Werror", str(source), "-o", str(result)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    code = re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function : |\Z)", cuobjdump("-sass", file=result), re.S)
    assert len(code) == 2
    for name, (_, text) in zip(readable([symbol for symbol, _ in code]), code, strict=True):
        assert len(re.findall(r"\bIMMA\.16832\.S8\.S8\b", text)) >= BUDGET[name]["instructions"]["IMMA.16832.S8.S8"]
        assert re.search(r"\b(RET|CALL\.ABS|LDL|STL)\b", text) is None, name


def configure(tmp_path: Path, option: str, nvcc: str) -> subprocess.CompletedProcess[str]:
    """What CMake says where nvcc is the given script."""
    pybind11 = pytest.importorskip("pybind11")
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    compiler = tmp_path / "nvcc"
    compiler.write_text(f"#!/bin/sh\n{nvcc}\n")
    compiler.chmod(0o755)
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DSUBBIT_CUDA={option}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDACXX": str(compiler)})


OLD = 'echo "Cuda compilation tools, release 11.8, V11.8.89"'
BROKEN = (
    'case "$1" in --version) echo "Cuda compilation tools, release 12.4, V12.4.99";; *) echo no cudafe; exit 1;; esac'
)


@pytest.mark.parametrize(("nvcc", "reason"), [(OLD, "is not nvcc 12 or later"), (BROKEN, "does not work: no cudafe")])
def test_without_a_working_nvcc_the_rest_is_built_and_the_reason_said(tmp_path, nvcc, reason):
    done = configure(tmp_path, "AUTO", nvcc)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"CUDA kernels are not built: \S+/nvcc {reason}", done.stdout)


def test_cuda_that_is_asked_for_and_cannot_be_built_is_an_error(tmp_path):
    done = configure(tmp_path, "ON", OLD)
    assert done.returncode != 0
    assert re.search(r"SUBBIT_CUDA=ON, but\s+\S+/nvcc\s+is\s+not\s+nvcc\s+12\s+or\s+later", done.stderr)


def test_an_option_that_is_none_is_an_error(tmp_path):
    done = configure(tmp_path, "maybe", OLD)
    assert done.returncode != 0
    assert "SUBBIT_CUDA must be ON, OFF or AUTO, got 'maybe'" in done.stderr


def test_cuda_can_be_left_out(tmp_path):
    done = configure(tmp_path, "OFF", "exit 1")
    assert done.returncode == 0, done.stderr
    assert "CUDA" not in done.stdout.replace("SUBBIT_CUDA", "")
