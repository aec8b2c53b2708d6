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

class Conv:
    def __init__(
        self,
        weight: Weight,
        x_shape: Sequence[int],
        x_strides: Sequence[int] | None,
        y_shape: Sequence[int],
        y_strides: Sequence[int] | None,
        residual_strides: Sequence[int] | None,
        packs: bool,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        binary: bool,
        sign_zero: bool,
        activation: int,
        threads: int,
        level: str | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: int,
        x_nonzero: int,
        y: int,
        y_plus: int,
        y_nonzero: int,
        scale: int,
        bias: int,
        residual: int,
        slope: int,
        shift: int,
        pack_shift: int,
    ) -> None: ...

def select(binary: bool, unit: Unit, codewords: int, units: int, outputs: int, spread: int, level: str) -> Plan: ...
def kernels() -> list[tuple[str, str, bool]]: ...
def machine_level() -> str: ...
def active_level() -> str: ...
