"""Max-pooling in graphs: what moves before it, and that binary activations stay packed through it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import subbit_infer
from subbit_infer import models
from subbit_infer.nn import PackedMaxPool2d, SubbitConv2d


def folded_vgg(bits, turn=False):
    """A VGG-small and its folded form; with ``turn`` some gains of a BatchNorm after a pooling are negative."""
    dense = models.vgg_small(bits)
    models.make_subbit_weights(dense, 5)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models.calibrate(dense, x)
    if turn:
        norms = [module for module in dense.modules() if isinstance(module, nn.BatchNorm2d)]
        norms[1].weight.data[::2] *= -1
    return dense, subbit_infer.convert(dense, x, fold=True)[0], x


@pytest.mark.parametrize(
    ("bits", "outputs", "pools"), [(32, {"float": 5}, 0), (1, {"packed": 4, "float": 1}, 2)], ids=["A32", "A1"]
)
@torch.no_grad()
def test_vgg_small_is_folded_wholly(bits, outputs, pools):
    dense, folded, x = folded_vgg(bits)
    assert Counter(m.output for m in folded.modules() if isinstance(m, SubbitConv2d)) == outputs
    assert sum(isinstance(m, PackedMaxPool2d) for m in folded.modules()) == pools
    assert "batch_norm" not in folded.code
    assert "max_pool2d.default" not in folded.code
    torch.testing.assert_close(folded(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 32])
@torch.no_grad()
def test_a_batch_norm_with_negative_gains_stays_after_the_pooling(bits):
    dense, folded, x = folded_vgg(bits, turn=True)
    assert folded.code.count("batch_norm") > 0
    torch.testing.assert_close(folded(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), None), ((3, 2), (2, 1)), ((3, 3), (2, 2))])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_maximum_of_packed_activations(sign_zero, kernel, stride, size):
    x = torch.randint(-1, 2, (2, 70, *size), generator=torch.Generator().manual_seed(0)).float()
    packed = subbit_infer.pack(x, sign_zero=sign_zero)
    pooled = PackedMaxPool2d(kernel, stride)(packed)
    assert torch.equal(pooled.unpack(), nn.functional.max_pool2d(packed.unpack(), kernel, stride))
    subbit_infer.PackedActivations(pooled.plus, pooled.nonzero, pooled.channels)  # checks the words


def test_the_window_is_printed():
    assert repr(PackedMaxPool2d((2, 2))) == "PackedMaxPool2d(kernel_size=(2, 2), stride=(2, 2))"
