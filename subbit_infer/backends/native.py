"""The one file that touches the compiled CPU module: loads it, and says what it has."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch  # noqa: F401 -- first: the compiled module takes its OpenMP functions from the runtime that torch has loaded

try:
    from subbit_infer import _C
except ImportError as error:
    if "GOMP" not in str(error) and "omp_" not in str(error):
        raise ImportError(
            f"the compiled module subbit_infer._C is not in {Path(__file__).parent.parent} or cannot be loaded: "
            f"{error}. "
            "In a clone, run from another directory, after 'pip install .', or install with 'pip install -e .'"
        ) from error
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)  # a torch without OpenMP: bring one
    from subbit_infer import _C

UNITS = {(1, 3, 3): _C.Unit.k3x3, (8, 1, 1): _C.Unit.k8x1x1}
"""The units that kernels are compiled for (paper, Table 5)."""

Weight = _C.Weight
Conv = _C.Conv
pack = _C.pack
assign = _C.assign
same_bytes = _C.same_bytes
kernels = _C.kernels
candidates = _C.candidates
cuda_candidates = _C.cuda_candidates
wanted_plan = _C.wanted_plan
machine_level = _C.machine_level
active_level = _C.active_level
