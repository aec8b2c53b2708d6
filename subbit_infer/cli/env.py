"""``subbit env``: what is available here, and why something is not."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import subbit_infer
from subbit_infer.backends import native
from subbit_infer.backends.cuda import runtime
from subbit_infer.cli.screen import Json, show

_LEVELS = ("scalar", "avx2", "avx512", "avx512vbmi")
_VARIABLES = ("SUBBIT_ISA", "SUBBIT_PLAN", "SUBBIT_JIT", "SUBBIT_DEBUG", "OMP_NUM_THREADS")
_OPTIONAL = {
    "onnx": "ONNX files",
    "onnxscript": "writing ONNX files",
    "onnxruntime": "running ONNX files",
    "onnxruntime-extensions": "our kernels in ONNX Runtime",
}
_OPENMP = re.compile(r"/(lib(gomp|omp|iomp5)[^/]*\.so[^/]*)$")


def env(json: Json = False) -> None:
    """Show versions, the processor's level, threads, and what is missing and why."""
    found = environment()
    show(found, "\n".join(_lines(found)), as_json=json)


def environment() -> dict[str, Any]:
    """Everything, for JSON."""
    machine = native.machine_level()
    return {
        "subbit_infer": subbit_infer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "levels": list(_LEVELS[: _LEVELS.index(machine) + 1]),
        "active_level": native.active_level(),
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "openmp": _openmp_runtimes(),
        "cuda": runtime.info(),
        "jit": os.environ.get("SUBBIT_JIT", "") != "0",
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "optional": {name: _version_of(name) for name in _OPTIONAL},
    }


def _lines(found: dict[str, Any]) -> list[str]:
    lowered = "" if found["active_level"] == found["levels"][-1] else ", lowered by SUBBIT_ISA"
    openmp, cuda = found["openmp"], found["cuda"]
    several = "; several in one process are slow, load torch first" if len(openmp) > 1 else ""
    rows = [
        ("subbit_infer", found["subbit_infer"]),
        ("Python", found["python"]),
        ("torch", found["torch"]),
        ("numpy", found["numpy"]),
        ("platform", found["platform"]),
        ("CPU", found["cpu"]),
        ("levels", f"{', '.join(found['levels'])}; active: {found['active_level']}{lowered}"),
        ("threads", f"{found['threads']} of {found['cpus']} CPUs"),
        ("OpenMP", ", ".join(openmp) + several if openmp else "no runtime found among the loaded libraries"),
        ("CUDA", _cuda(cuda)),
        ("JIT", "allowed" if found["jit"] else "off: SUBBIT_JIT=0"),
        ("variables", ", ".join(f"{name}={value}" for name, value in found["variables"].items()) or "none set"),
    ]
    for name, use in _OPTIONAL.items():
        given = found["optional"][name]
        rows.append((name, given if given else f"missing, for {use}: pip install {name}"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def _cuda(found: dict[str, Any]) -> str:
    built = ", ".join(f"sm_{number}" for number in found["architectures"])
    kernels = f"kernels for {built} (CUDA {found['cuda']})" if found["built"] else "no kernels"
    if found["reason"]:
        return f"{kernels}; not used: {found['reason']}"
    devices = (f"{d['name']}{'' if d['supported'] else ', which they are not for'}" for d in found["devices"])
    return f"{kernels}; {', '.join(devices)}"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _openmp_runtimes() -> list[str]:
    """The OpenMP runtimes that are loaded; torch and our kernels are to share one."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    found = (_OPENMP.search(line) for line in maps.read_text().splitlines())
    return sorted({match[1] for match in found if match})
