"""Layers that see the signs of their input: while they are trained, and when they are finished."""

from __future__ import annotations

from torch import Tensor, nn

from subbit_infer.core.sizes import pair
from subbit_infer.training.config import Config
from subbit_infer.training.latent import Sign


class SignConv2d(nn.Conv2d):
    """A convolution of the sign of its input; padding stays 0 and contributes nothing."""

    sign: Sign | None  # no value here: it would hide the submodule

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) floats to (N, C_out, H_out, W_out)."""
        return super().forward(x.sign() if self.sign is None else self.sign(x))


class SignLinear(nn.Linear):
    """A linear layer of the sign of its input."""

    sign: Sign | None  # no value here: it would hide the submodule

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) floats to (..., C_out)."""
        return super().forward(x.sign() if self.sign is None else self.sign(x))


def of_signs(layer: nn.Conv2d | nn.Linear, config: Config) -> SignConv2d | SignLinear:
    """A layer of the same parameters, the very same tensors, that takes the sign of its input."""
    made: SignConv2d | SignLinear
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding if isinstance(layer.padding, str) else pair(layer.padding)
        made = SignConv2d(
            layer.in_channels, layer.out_channels, pair(layer.kernel_size), pair(layer.stride), padding,
            pair(layer.dilation), layer.groups, layer.bias is not None, layer.padding_mode, device="meta",
        )  # fmt: skip
    else:
        made = SignLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    made.sign = Sign(config)
    return made.train(layer.training)
