"""Binary mode against OpenVINO's 1-bit convolution, which shares no code and no author with us."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import UNIT_3X3, dense_weight, random_weight

from subbit_infer import conv

openvino = pytest.importorskip("openvino")


def openvino_binary_conv(x: torch.Tensor, dense: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    from openvino import opset1

    def scalar(value):
        return opset1.constant(np.full((1, 1, 1, 1), value, np.float32))

    parameter = opset1.parameter(list(x.shape), np.float32)
    quantized = opset1.fake_quantize(parameter, scalar(0), scalar(0), scalar(0), scalar(1), 2)
    bits = np.packbits((dense.numpy() > 0).astype(np.uint8).reshape(-1), bitorder="little")
    weights = openvino.op.Constant(openvino.Tensor(bits, openvino.Shape(list(dense.shape)), openvino.Type.u1))
    y = opset1.binary_convolution(
        quantized, weights, [stride] * 2, [padding] * 2, [padding] * 2, [1, 1], "xnor-popcount", 0.0
    )
    compiled = openvino.Core().compile_model(openvino.Model([y], [parameter]), "CPU")
    return torch.from_numpy(np.array(compiled([x.numpy()])[0]))


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "size", "stride", "padding"),
    [(64, 64, 14, 1, 1), (32, 48, 9, 2, 1), (16, 128, 7, 1, 0), (128, 256, 7, 1, 1)],
)
def test_equals_openvino(in_channels, out_channels, size, stride, padding):
    indices, codebook = random_weight(UNIT_3X3, out_channels, in_channels, 32)
    x = torch.randn(1, in_channels, size, size, generator=torch.Generator().manual_seed(0))
    assert (x != 0).all()
    theirs = openvino_binary_conv(x, dense_weight(indices, codebook), stride, padding)
    ours = conv(x, indices, codebook, stride=stride, padding=padding, activation_bits=1)
    assert torch.equal(ours, theirs)
