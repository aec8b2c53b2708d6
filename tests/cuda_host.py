"""Kernel bodies of csrc/cuda on the CPU: libraries built by the C++ compiler with the host shim, no nvcc needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(source: str, folder: Path) -> ctypes.CDLL:
    """The library of one file of tests/cuda, built into a folder."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler found")
    library = folder / f"{Path(source).stem}.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, f"-I{ROOT / 'csrc'}", str(ROOT / "tests" / "cuda" / source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))
