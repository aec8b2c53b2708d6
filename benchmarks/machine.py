"""What figures depend on: the machine, versions, threads, limits, the commit and the command."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from subbit_infer.backends import native

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("avx2", "fma", "avx512f", "avx512vbmi", "avx512_vnni", "avx512_vpopcntdq", "avx512_bf16", "amx_tile")
PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")

# What holds everybody to a level. ONNX Runtime knows no such variable.
LIMITS = {
    "native": {},
    "avx2": {
        "SUBBIT_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OV_CPU_MAX_ISA": "AVX2",
    },
}


def variables(threads: int, isa: str) -> dict[str, str]:
    """What libraries have to find in the environment when they are loaded."""
    return {"OMP_NUM_THREADS": str(threads), **LIMITS[isa]}


def enter(threads: int, isa: str) -> None:
    """Sets torch's threads; starts this program again if its libraries were loaded without these variables."""
    wanted = variables(threads, isa)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    torch.set_num_threads(threads)


def widest() -> str:
    """The widest vector registers that our kernels use here, as the first word of a rate."""
    return "zmm" if native.active_level().startswith("avx512") else "ymm"


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def environment(threads: int, isa: str) -> dict[str, Any]:
    """Everything, for JSON."""
    info = _cpuinfo()
    present = set(info.get("flags", "").split())
    return {
        "cpu": f"{info.get('model name', platform.processor())} (family {info.get('cpu family')}, "
        f"model {info.get('model')})",
        "flags": [flag for flag in FLAGS if flag in present],
        "cpus": cpus(),
        "level": native.active_level(),
        "threads": threads,
        "limits": LIMITS[isa],
        "python": platform.python_version(),
        "compiler": output_of("g++", "-dumpfullversion"),
        **{name: version(name) for name in PACKAGES},
        "commit": output_of("git", "rev-parse", "--short=10", "HEAD")
        + ("+" if output_of("git", "status", "-s") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def output_of(*command: str) -> str:
    """A program's output; "unknown" where there is no such program, or no repository."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
