"""Convolutions by the definition, for units and devices without kernels: decode and convolve in float32."""

from __future__ import annotations

from subbit_infer.backends.executable import outputs_of
from subbit_infer.core import reference
from subbit_infer.core.conv_args import ConvArgs, Outputs
from subbit_infer.core.sizes import pair
from subbit_infer.core.weight import unpack_codebook, unpack_indices


def convolve(args: ConvArgs) -> Outputs:
    """Any unit on any device; arguments as they were given."""
    g, kh, kw = args.unit
    y = reference.conv2d(
        args.float_x(),
        unpack_indices(args.packed_indices, args.units, args.codewords),
        unpack_codebook(args.packed_codebook, args.codewords, (g, kh, kw)),
        args.bias,
        pair(args.stride),
        pair(args.padding),
        pair(args.dilation),
        args.groups,
        scale=args.scale,
        residual=args.residual,
        activation=args.activation,
        slope=args.slope,
        shift=args.shift,
        activation_bits=args.activation_bits,
        sign_zero=0 if args.is_packed else args.sign_zero,
    )
    return outputs_of(args, y)
