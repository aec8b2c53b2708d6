"""Builds the kernels' bodies for the CPU (tests/cuda/shim)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "shim"


def build_shim(directory: Path, target: str) -> ctypes.CDLL:
    """A library of kernels' bodies; skips the test where there is nothing to build it with."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler, which build the shim")
    sanitize = "ON" if "libasan" in os.environ.get("LD_PRELOAD", "") else "OFF"  # as make sanitize has it
    configure = ["-B", str(directory), "-S", str(SOURCE), f"-DSUBBIT_SANITIZE={sanitize}"]
    for command in (configure, ["--build", str(directory), "--target", target]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return ctypes.CDLL(str(directory / f"lib{target}.so"))
