from collections.abc import Sequence

class Unit:
    k3x3: Unit
    k8x1x1: Unit

class Conv:
    def __init__(
        self,
        *,
        unit: Unit,
        codewords: int,
        element: int,
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
        capability: int,
    ) -> None: ...
    def can_run(self, route: str) -> bool: ...
    def scratch_bytes(self, route: str, x: int, x_nonzero: int) -> int: ...
    def weight_bytes(self, route: str) -> int: ...
    def prepare(self, *, route: str, device: int, stream: int, indices: int, codebook: int, weight: int) -> None: ...
    def __call__(
        self,
        *,
        route: str,
        device: int,
        stream: int,
        x: int,
        x_nonzero: int,
        indices: int,
        codebook: int,
        prepared_weight: int,
        scale: int,
        bias: int,
        residual: int,
        slope: int,
        shift: int,
        y: int,
        y_plus: int,
        y_nonzero: int,
        pack_shift: int,
        scratch: int,
    ) -> None: ...

def pack(
    *,
    device: int,
    stream: int,
    x: int,
    element: int,
    shape: Sequence[int],
    strides: Sequence[int],
    shift: int,
    plus: int,
    nonzero: int,
) -> None: ...

architectures: list[int]
version: int
