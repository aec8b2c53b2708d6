from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from subbit_infer.conversion.modules.signs import Signs

FROM_SIGNS = {
    "sign": lambda x, t: x.sign(),
    "sign in place": lambda x, t: x.clone().sign_(),
    "views": lambda x, t: x.sign().flatten(1).mT[1:],
    "training code": lambda x, t: x.sign().detach() - t.detach() + t,
    "comparison": lambda x, t: (x >= 0).float() * 2 - 1,
    "where": lambda x, t: torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x)),
    "where of numbers": lambda x, t: torch.where(x > 0, 1.0, -1.0),
    "filled": lambda x, t: torch.ones_like(x).masked_fill(x < 0, -1),
    "indexed": lambda x, t: _indexed(x),
    "pooled": lambda x, t: F.max_pool2d(x.sign(), 2),
    "padded": lambda x, t: F.pad(x.sign(), (1, 1)),
    "half": lambda x, t: x.sign().half(),
    "copied": lambda x, t: torch.empty_like(x).copy_(x.sign()),
}
NOT_FROM_SIGNS = {
    "nothing": lambda x, t: x,
    "round": lambda x, t: x.round(),
    "relu by where": lambda x, t: torch.where(x > 0, x, torch.zeros_like(x)),
    "relu by mask": lambda x, t: x * (x > 0),
    "scaled": lambda x, t: x.sign() * t,
    "constants": lambda x, t: torch.ones_like(x) - 2,
    "constant and float": lambda x, t: torch.zeros_like(x) + x,
    "overwritten": lambda x, t: x.sign().copy_(t),
    "convolved": lambda x, t: F.conv2d(x.sign(), torch.ones(1, 4, 1, 1)),
}


def _indexed(x):
    y = torch.ones_like(x)
    y[x < 0] = -1
    return y


def is_marked(compute):
    x, t = torch.randn(2, 2, 4, 8, 8)
    with torch.no_grad(), Signs() as signs:
        return compute(x, t) in signs


@pytest.mark.parametrize("name", FROM_SIGNS)
def test_what_comes_from_signs_is_marked(name):
    assert is_marked(FROM_SIGNS[name])


@pytest.mark.parametrize("name", NOT_FROM_SIGNS)
def test_nothing_else_is(name):
    assert not is_marked(NOT_FROM_SIGNS[name])
