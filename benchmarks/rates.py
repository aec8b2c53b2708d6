"""What the machine can do at best: compiles rates.cpp for this machine and runs it."""

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("rates.cpp")
LINE = re.compile(r"^(\S+ \S+) +(\d+) KB +([\d.]+) G/s$", re.MULTILINE)

KINDS = ("load-add", "fma", "vpermb+add")
LANES = {"ymm": 8, "zmm": 16}  # floats
TABLE_LANES = 64  # bytes of a zmm


def measure(widest: str = "zmm") -> dict[str, float]:
    """10^9 instructions a second of the calling thread's core, for those of `KINDS` that this machine has.

    Where the memory operand's footprint matters, that is 16 KiB: within L1.

    Args:
        widest: "ymm" to leave the instructions out that those who are held to AVX2 may not use.
    """
    output = subprocess.run([_program()], capture_output=True, text=True, check=True).stdout
    found = {name: float(rate) for name, kib, rate in LINE.findall(output) if int(kib) <= 16}
    return {name: rate for name, rate in found.items() if name.split()[1] in KINDS and name[:3] <= widest}


def ceiling(rates: dict[str, float], kind: str, taps: int) -> float | None:
    """What one of `KINDS` allows at most, in GMAC/s of the dense convolution; None where this machine has it not.

    Args:
        rates: As `measure` gives them.
        kind: "fma" for a dense convolution, which multiplies and adds once a weight; "load-add" and "vpermb+add" for
            ours, where one addition or look-up stands for a unit.
        taps: Weights of a unit.
    """
    if kind == "vpermb+add":
        rate = rates.get("zmm vpermb+add")
        return None if rate is None else rate * TABLE_LANES * taps
    for width in ("zmm", "ymm"):
        if f"{width} {kind}" in rates:
            return rates[f"{width} {kind}"] * LANES[width] * (1 if kind == "fma" else taps)
    return None


@cache
def _program() -> Path:
    path = Path(tempfile.mkdtemp(prefix="subbit-rates-")) / "rates"
    subprocess.run(["g++", "-std=c++17", "-O3", "-march=native", "-o", path, SOURCE], check=True)
    return path
