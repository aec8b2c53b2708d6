from __future__ import annotations

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, random_weight

from subbit_infer.conversion.detection import NotSubbitError, recognize


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_subbit_weight_comes_back(unit, dtype):
    alpha = torch.rand(10).to(dtype).float() + 0.5
    dense = (dense_weight(*random_weight(unit, 10, 4, 16)) * alpha.to(dtype).float()[:, None, None, None]).to(dtype)
    weight = recognize(dense)
    assert torch.equal(weight.decode(), dense.float())
    assert weight.tau <= 4


def test_a_linear_weight():
    dense = dense_weight(*random_weight(UNIT_1X1, 10, 4, 16))[:, :, 0, 0]
    weight = recognize(dense, torch.arange(10.0))
    assert weight.scale is None
    assert torch.equal(weight.decode()[:, :, 0, 0], dense)
    assert torch.equal(weight.bias, torch.arange(10.0))


def test_magnitudes_within_rounding():
    """As training code leaves them: (alpha sign(w) - w) + w."""
    binary = 0.3 * dense_weight(*random_weight(UNIT_3X3, 10, 12, 32))
    latent = torch.rand_like(binary) * 2 - 1
    rounded = (binary - latent) + latent
    assert not torch.equal(rounded, binary)
    weight = recognize(rounded)
    assert torch.equal(weight.decode().sign(), binary.sign())
    torch.testing.assert_close(weight.decode(), binary, rtol=1e-6, atol=0)


BINARY = dense_weight(*random_weight(UNIT_3X3, 4, 8, 16))


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (torch.randn(4, 8, 3, 3), "magnitudes from"),
        (BINARY * (1 + 3e-5 * torch.rand(BINARY.shape)), "magnitudes from"),
        (BINARY * torch.tensor([1.0, 0, 1, 1])[:, None, None, None], r"weights of 0 \(channel 1\)"),
        (BINARY * float("inf"), "not finite"),
        (BINARY * float("nan"), "not finite"),
        (BINARY.double(), "weights are float64"),
        (torch.ones(4, 8, 5, 5), "no kernels for 5x5 units"),
        (torch.ones(4, 9, 1, 1), "9 input channels do not divide into units of 8"),
        (torch.randn(64, 64, 3, 3).sign(), "more than 256 distinct units"),
        (torch.ones(4, 8, 3), "shape"),
        (torch.ones(0, 8, 3, 3), "shape"),
    ],
)
def test_what_is_not_subbit(weight, why):
    with pytest.raises(NotSubbitError, match=why):
        recognize(weight)


@pytest.mark.parametrize(("unit", "codewords"), [(UNIT_3X3, 16), (UNIT_3X3, 200), (UNIT_1X1, 16)])
def test_channels_that_a_folded_norm_turned_around(unit, codewords):
    """Half of a codebook's opposites are not in it: without a negative scale an index would take another bit."""
    indices, codebook = random_weight(unit, 24, 400, codewords)
    dense = dense_weight(indices, codebook) * torch.tensor([0.5, -2.0, 1.0])[torch.arange(24) % 3, None, None, None]
    weight = recognize(dense)
    assert weight.tau == recognize(dense.abs() * dense_weight(indices, codebook)).tau
    assert bool((weight.scale < 0).any())
    assert torch.equal(weight.decode(), dense)
