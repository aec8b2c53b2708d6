from collections.abc import Sequence
from typing import TypedDict

class Unit:
    k3x3: Unit
    k8x1x1: Unit

class Weight:
    def __init__(
        self,
        unit: Unit,
        out_channels: int,
        units: int,
        codewords: int,
        indices: int,
        indices_bytes: int,
        codebook: int,
        codebook_bytes: int,
    ) -> None: ...

class Plan(TypedDict):
    kernel: str
    level: str
    binarize: bool
    units_per_block: int

def conv2d(
    weight: Weight,
    x: int,
    x_shape: Sequence[int],
    x_strides: Sequence[int],
    y: int,
    y_shape: Sequence[int],
    y_strides: Sequence[int],
    scale: int,
    bias: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    binary: bool,
    sign_zero: bool,
    threads: int,
    level: str | None = None,
) -> None: ...
def select(binary: bool, unit: Unit, codewords: int, units: int, outputs: int, spread: int, level: str) -> Plan: ...
def kernels() -> list[tuple[str, str, bool]]: ...
def machine_level() -> str: ...
def active_level() -> str: ...
