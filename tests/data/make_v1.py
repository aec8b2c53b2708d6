"""Makes the files of version 1 that must stay readable: model_v1, weights_v1 and, beside them, expected_v1.

They are made once, by the version that introduced the format, and never again:

    python tests/data/make_v1.py

Inputs are integers and scales powers of two, so that every order of addition gives the outputs that are stored.
"""

from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch

import subbit_infer
from subbit_infer import PackedWeight
from subbit_infer.nn import SubbitConv2d, SubbitLinear

HERE = Path(__file__).parent


def whole(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Floats that are integers in [-8, 8]."""
    return torch.randint(-8, 9, shape, generator=generator).float()


def packed(generator: torch.Generator, unit: tuple[int, int, int], outputs: int, units: int, codewords: int):
    """A weight with scale and bias."""
    codebook = torch.randint(0, 2, (codewords, *unit), generator=generator) * 2.0 - 1
    indices = torch.randint(0, codewords, (outputs, units), generator=generator)
    scale = 2.0 ** torch.randint(-2, 3, (outputs,), generator=generator)
    return PackedWeight.from_indices(indices, codebook, scale, whole(generator, outputs))


def main() -> None:
    """Writes the three files."""
    generator = torch.Generator().manual_seed(0)
    first = packed(generator, (1, 3, 3), 16, 8, 20)
    second = packed(generator, (8, 1, 1), 16, 2, 7)
    third = packed(generator, (8, 1, 1), 10, 2, 32)
    vectors = {name: whole(generator, 16) for name in ("slope", "shift")}
    conv1 = SubbitConv2d.from_packed(first, stride=2, padding=1, activation="prelu", **vectors)
    conv2 = SubbitConv2d.from_packed(second, activation_bits=1, sign_zero=1)
    model = torch.nn.Sequential(
        OrderedDict(
            stem=torch.nn.Conv2d(3, 8, 3, bias=False),
            conv1=conv1,
            conv2=conv2,
            again=conv2,  # shared: stored once
            pool=torch.nn.AdaptiveMaxPool2d(1),
            flatten=torch.nn.Flatten(),
            fc=SubbitLinear.from_packed(third),
        )
    ).eval()
    with torch.no_grad():
        model.stem.weight.copy_(whole(generator, 8, 3, 3, 3))
        model.to(memory_format=torch.channels_last)
    x = whole(generator, 2, 3, 9, 9)
    subbit_infer.save(model, HERE / "model_v1.safetensors")
    subbit_infer.save_weights({"first": first, "second": second}, HERE / "weights_v1.safetensors")
    with torch.no_grad():
        expected = {"x": x, "y": model(x), "first": first.decode(), "second": second.decode()}
    safetensors.torch.save_file(expected, HERE / "expected_v1.safetensors")


if __name__ == "__main__":
    main()
