from collections.abc import Sequence
from typing import NotRequired, TypedDict

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

class Candidate(TypedDict):
    plan: str
    nanoseconds: float
    kernel: NotRequired[str]  # but for the plan "dense"; so are the next
    level: NotRequired[str]
    binarize: NotRequired[bool]
    units_per_block: NotRequired[int]

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
        plan: str | None = None,
    ) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def is_dense(self) -> bool: ...
    @property
    def kernel(self) -> str | None: ...
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

def pack(
    x: int,
    shape: Sequence[int],
    strides: Sequence[int],
    shift: int,
    sign_zero: bool,
    plus: int,
    nonzero: int,
    threads: int,
    level: str | None = None,
) -> None: ...
def assign(
    units: int,
    count: int,
    taps: int,
    codebook: int,
    codewords: int,
    indices: int,
    threads: int,
    level: str | None = None,
) -> None: ...
def same_bytes(a: int, b: int, count: int) -> bool: ...
def candidates(
    binary: bool,
    unit: Unit,
    codewords: int,
    units: int,
    outputs: int,
    groups: int,
    spread: int,
    pixels: int,
    input_pixels: int,
    level: str,
    packed_input: bool = False,
) -> list[Candidate]: ...

class CudaCandidate(TypedDict):
    plan: str
    microseconds: float

def cuda_candidates(
    *,
    binary: bool,
    element: int,
    unit: Unit,
    codewords: int,
    units: int,
    outputs: int,
    groups: int,
    batch: int,
    pixels: int,
    out_width: int,
    input_pixels: int,
    has_zeros: bool,
    is_channels_last: bool,
    packed_input: bool,
    float_output: bool,
    packed_output: bool,
    epilogue_commutes_with_rounding: bool,
    capability: int,
    multiprocessors: int,
    routes: list[str],
) -> list[CudaCandidate]: ...
def wanted_plan() -> str: ...
def kernels() -> list[tuple[str, str, bool]]: ...
def machine_level() -> str: ...
def active_level() -> str: ...
