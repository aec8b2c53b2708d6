"""Calls of the compiled kernels, by every level and plan, and the oracle that they are compared with."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    LEVELS,
    expected_conv,
    integers,
    prepared,
    random_weight,
    run_kernel,
    signs,
)

from subbit_infer import PackedWeight
from subbit_infer.backends import native
from subbit_infer.core.conv_args import ConvArgs, Outputs

CANARY = -123456.0
WORD_CANARY = 0x5A5A5A5A5A5A5A5A
NAN = float("nan")


def run(
    x, indices, codebook, level, *, plan="sharing", threads=1, channels_last=False, scale=None, bias=None, **options
):
    """Calls the compiled convolution at a level, into an output with canaries on both sides."""
    stride, padding = options.get("stride", (1, 1)), options.get("padding", (0, 0))
    dilation, groups = options.get("dilation", (1, 1)), options.get("groups", 1)
    activation_bits, sign_zero = options.get("activation_bits", 32), options.get("sign_zero", 0)
    weight = PackedWeight.from_indices(indices, codebook)
    sizes = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.unit[1 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    shape = (x.shape[0], weight.out_channels, *sizes)
    count = shape[0] * shape[1] * shape[2] * shape[3]
    memory = torch.full((count + 64,), CANARY)
    inner = memory[32 : 32 + count]
    y = inner.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2) if channels_last else inner.view(shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        args = ConvArgs.of_weight(
            x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups,
            activation_bits=activation_bits, sign_zero=sign_zero,
        )._replace(scale=scale, bias=bias)  # fmt: skip
        given = prepared(weight), args, Outputs(y, None, None), shape, level
        if not run_kernel(*given, plan):  # it has no such layout, and the dense one is faster than others
            assert run_kernel(*given, "sharing")
    finally:
        torch.set_num_threads(before)
    assert (memory[:32] == CANARY).all(), "wrote before the output"
    assert (memory[32 + count :] == CANARY).all(), "wrote behind the output"
    return y


def assert_same(y: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(y, expected.float()):
        wrong = (y != expected).nonzero()
        at = tuple(wrong[0].tolist())
        pytest.fail(
            f"{len(wrong)} of {y.numel()} elements differ, first at {at}: {y[at].item()}, not {expected[at].item()}"
        )


def check(unit, out_channels, in_channels, codewords, size, level, *, batch=1, groups=1, seed=0, **options):
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], codewords, seed)
    x = integers(batch, in_channels, *size, seed=seed)
    ours = {k: options.pop(k) for k in ("threads", "channels_last") if k in options}
    expected = expected_conv(x, indices, codebook, groups=groups, **options)
    for plan in plans(level, options.get("activation_bits", 32)):
        assert_same(run(x, indices, codebook, level, plan=plan, groups=groups, **ours, **options), expected)


def plans(level, activation_bits):
    """The kernels written for a level, by name, or the families that run there; where one cannot, another does."""
    kernels = [(name, of) for name, of, binary in native.kernels() if binary == (activation_bits == 1)]
    own = [name for name, of in kernels if of == level]
    return own or sorted({name.split("_")[1] for name, of in kernels if LEVELS.index(of) <= LEVELS.index(level)})


class GuardedWords:
    """Words of (N, H, W, words) with canaries on both sides, poisoned."""

    def __init__(self, *shape: int) -> None:
        self._count = shape[0] * shape[1] * shape[2] * shape[3]
        self._memory = torch.full((self._count + 64,), WORD_CANARY)
        self.tensor = self._memory[32 : 32 + self._count].view(shape)

    def check(self) -> None:
        assert (self._memory[:32] == WORD_CANARY).all(), "wrote before the words"
        assert (self._memory[32 + self._count :] == WORD_CANARY).all(), "wrote behind the words"


def run_whole(x, indices, codebook, level, plan, sizes, *, output, channels_last, pack_sign_zero, threads, **options):
    """Calls a plan, or a kernel by its name, at a level with all that surrounds the sums.

    Returns y, plus and nonzero, None for what is not asked for.

    Returns None where the plan cannot run the problem, so that another would.
    """
    weight = PackedWeight.from_indices(indices, codebook)
    memory, y = poisoned_floats(sizes, channels_last)
    words = [GuardedWords(sizes[0], *sizes[2:], -(-sizes[1] // 64)) for _ in range(2)]
    plus, nonzero = (w.tensor for w in words)
    plus = None if output == "float" else plus
    nonzero = None if output == "float" or pack_sign_zero else nonzero
    scale, bias = options.pop("scale"), options.pop("bias")
    y = None if output == "packed" else y
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        args = ConvArgs.of_weight(
            x, weight, pack_sign_zero=pack_sign_zero, float_output=y is not None, packed_output=plus is not None,
            **options,
        )._replace(scale=scale, bias=bias)  # fmt: skip
        is_done = run_kernel(prepared(weight), args, Outputs(y, plus, nonzero), sizes, level, plan)
    finally:
        torch.set_num_threads(before)
    kernels = [conv.kernel for conv in prepared(weight).convs.values()]
    if not is_done or plan not in (kernels[-1], kernels[-1].split("_")[1]):
        return None
    assert (memory[:32] == CANARY).all(), "wrote before the output"
    assert (memory[-32:] == CANARY).all(), "wrote behind the output"
    for one, asked in zip(words, (plus, nonzero), strict=True):
        one.check()
        if asked is None:
            assert (one.tensor == WORD_CANARY).all(), "wrote words that nobody asked for"
    return y, plus, nonzero


def poisoned_floats(shape, channels_last):
    """Memory with canaries on both sides, and the NaNs between them as an output."""
    count = shape[0] * shape[1] * shape[2] * shape[3]
    memory = torch.full((count + 64,), CANARY)
    inner = memory[32 : 32 + count].fill_(NAN)
    y = inner.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2) if channels_last else inner.view(shape)
    return memory, y


def words_of(bits):
    """(N, C, H, W) booleans as words, a channel after the other, as the format's docstring says."""
    batch, channels, height, width = bits.shape
    words = torch.zeros(batch, height, width, -(-channels // 64), dtype=torch.int64)
    for c in range(channels):
        words[..., c // 64] |= bits[:, c].long() << c % 64
    return words


def expected_whole(x, indices, codebook, *, residual, activation, slope, shift, pack_shift, **options):
    """The epilogue in float64 from the oracle's sums, and the signs: y, plus with and without zeros, nonzero."""
    v = expected_conv(x, indices, codebook, **options)
    of_channels = lambda vector: vector.double()[:, None, None]  # noqa: E731
    v = v if residual is None else v + residual.double()
    if activation == "relu":
        v = v.relu()
    elif activation == "hardtanh":
        v = torch.nn.functional.hardtanh(v)
    elif activation == "prelu":
        v = torch.where(v > 0, v, v * of_channels(slope))
    v = v if shift is None else v + of_channels(shift)
    s = v if pack_shift is None else v + of_channels(pack_shift)
    return v, words_of(s > 0), words_of(s >= 0), words_of((s > 0) | (s < 0))


def assert_whole(made, expected, pack_sign_zero, what):
    y, plus, nonzero = made
    v, positive, not_negative, used = expected
    if y is not None:
        same = (y == v.float()) | (y.isnan() & v.isnan())
        assert same.all(), f"{what}: y differs first at {(~same).nonzero()[0].tolist()}"
    for name, words, right in (
        ("plus", plus, not_negative if pack_sign_zero else positive),
        ("nonzero", nonzero, used),
    ):
        assert words is None or torch.equal(words, right), (
            f"{what}: {name} differs first at {(words != right).nonzero()[0].tolist()}"
        )


def residual_in(layout, sizes):
    """A residual whose rows follow each other, as kernels read it."""
    if layout is None:
        return None
    if layout == "channels_last":
        return integers(*sizes, seed=5).contiguous(memory_format=torch.channels_last)
    if layout == "slice":  # of channels, and every other pixel
        return integers(sizes[0], sizes[1] + 3, sizes[2], 2 * sizes[3], seed=5)[:, 2:-1, :, ::2]
    if layout == "one channel":
        return integers(sizes[0], 1, *sizes[2:], seed=5).expand(sizes)
    return integers(*sizes, seed=5)


DEFAULTS = {
    "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "sign_zero": 0, "scale": None,
    "bias": None, "residual": None, "activation": "none", "slope": None, "shift": None, "pack_shift": None,
}  # fmt: skip


def check_whole(
    level, activation_bits, unit, in_channels, out_channels, size, *, codewords=32, batch=2, packed=None, nan=False,
    output="both", channels_last=False, pack_sign_zero=0, threads=1, residual=None, vectors=(), seed=0, **options,
):  # fmt: skip
    """Every plan of a level, with what surrounds the sums, against the oracle.

    Args:
        packed: None for float input, "zeros" or "no zeros" for packed input.
        nan: whether a bias of NaN, and NaN in the residual, make some results NaN.
        residual: its layout.
        vectors: which of scale, bias, shift and pack_shift there are.
        the rest: as everywhere.
    """
    options = DEFAULTS | options
    groups = options["groups"]
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], codewords, seed)
    x = integers(batch, in_channels, *size, seed=seed)
    names = ("scale", "bias", "shift", "pack_shift")
    options |= {name: integers(out_channels, seed=10 + names.index(name)) for name in vectors}
    if options["activation"] == "prelu":
        options["slope"] = integers(out_channels, seed=20)
    geometry = {name: options[name] for name in ("stride", "padding", "dilation", "groups")}
    spatial = [
        (size[i] + 2 * options["padding"][i] - options["dilation"][i] * (unit[1 + i] - 1) - 1) // options["stride"][i]
        + 1
        for i in (0, 1)
    ]
    sizes = (batch, out_channels, *spatial)
    options["residual"] = residual_in(residual, sizes)
    if nan:
        options["bias"] = integers(out_channels, seed=11)
        options["bias"][out_channels // 2] = NAN
        if residual is not None and residual != "one channel":
            options["residual"][-1, -1, -1, -1] = NAN
    given = {}
    if packed == "no zeros":
        x = signs(x, 1)
    if packed is not None:
        given = {"x_nonzero": words_of(x != 0) if packed == "zeros" else None}
    sums = {name: options[name] for name in ("scale", "bias", "sign_zero")} | geometry
    epilogue = {name: options[name] for name in ("residual", "activation", "slope", "shift", "pack_shift")}
    expected = expected_whole(x, indices, codebook, activation_bits=activation_bits, **sums, **epilogue)
    ran = 0
    for plan in plans(level, activation_bits):
        made = run_whole(
            x if packed is None else words_of(x > 0), indices, codebook, level, plan, sizes, output=output,
            channels_last=channels_last, pack_sign_zero=pack_sign_zero, threads=threads,
            activation_bits=activation_bits, **given, **options,
        )  # fmt: skip
        if made is not None:
            ran += 1
            assert_whole(made, expected, pack_sign_zero, plan)
    assert ran > 0
