"""Models with sub-bit layers, to be saved."""

from __future__ import annotations

from collections import OrderedDict

import torch
from helpers import UNIT_1X1, UNIT_3X3, random_weight

from subbit_infer.nn import SubbitConv2d, SubbitLinear


def conv(outputs: int = 8, inputs: int = 8, seed: int = 0, **options) -> SubbitConv2d:
    indices, codebook = random_weight(UNIT_3X3, outputs, inputs, 20, seed)
    return SubbitConv2d.from_indices(indices, codebook, scale=torch.rand(outputs) + 0.5, padding=1, **options)


def converted() -> torch.nn.Sequential:
    """Every kind of layer and vector, a BatchNorm, tied layers, tied parameters, and channels_last."""
    vectors = {"slope": torch.rand(8), "shift": torch.rand(8), "pack_shift": torch.rand(8)}
    linear = SubbitLinear.from_indices(*random_weight(UNIT_1X1, 16, 1, 16), bias=torch.rand(16))
    twice = conv(seed=1)
    model = torch.nn.Sequential(
        OrderedDict(
            stem=torch.nn.Conv2d(3, 8, 3, bias=False).to(memory_format=torch.channels_last),
            norm=torch.nn.BatchNorm2d(8),
            packs=conv(activation="prelu", output="packed", activation_bits=1, sign_zero=1, **vectors),
            one=conv(activation_bits=1, seed=2),
            two=twice,
            again=twice,
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flatten=torch.nn.Flatten(),
            linear=linear,
            fc=torch.nn.Linear(16, 16),
            tied=torch.nn.Linear(16, 16),
        )
    )
    model.tied.weight = model.fc.weight
    return model.eval()


def dense() -> torch.nn.Sequential:
    """The same, before it was converted."""
    twice = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
    return torch.nn.Sequential(
        OrderedDict(
            stem=torch.nn.Conv2d(3, 8, 3, bias=False),
            norm=torch.nn.BatchNorm2d(8),
            packs=torch.nn.Conv2d(8, 8, 3, padding=1, bias=False),
            one=torch.nn.Identity(),  # whatever computed it
            two=twice,
            again=twice,
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flatten=torch.nn.Flatten(),
            linear=torch.nn.Linear(8, 16),
            fc=torch.nn.Linear(16, 16),
            tied=torch.nn.Linear(16, 16),
        )
    )


def same_state(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(
        t.dtype == theirs[k].dtype and t.stride() == theirs[k].stride() and torch.equal(t, theirs[k])
        for k, t in ours.items()
    )
