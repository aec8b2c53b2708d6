"""The CUDA kernels on a device, against the tests' own oracle: exact on integers, within derived bounds on floats."""

from __future__ import annotations

import random
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, expected_conv, integers, random_weight, signs

from subbit_infer import PackedActivations, PackedWeight, conv, convert, explain, linear, models, nn, pack
from subbit_infer.backends.cuda import convolution, runtime
from subbit_infer.backends.cuda import device as devices
from subbit_infer.backends.cuda import weight as weights
from subbit_infer.core.epilogue import Epilogue

REASON = runtime.reason()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(REASON is not None, reason=f"no CUDA kernels: {REASON}")]

DEVICE = torch.device("cuda", 0)
PLANS = ("sharing", "product", "sparse", "dense")
MOST_SPARSE = 8  # codewords, of 3x3 units, with float activations
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Every test that takes it runs by every plan; kernels that cannot run a problem leave it to the quickest."""
    given = request.node.callspec.params
    if request.param == "sparse" and (given.get("activation_bits") == 1 or given.get("unit") == UNIT_1X1):
        pytest.skip("the sparse route has no kernel for signs and for 1x1 units")
    monkeypatch.setenv("SUBBIT_PLAN", request.param)
    return request.param


@pytest.fixture(params=("sharing", "product", "dense"))
def signs_plan(request, monkeypatch):
    """The plans that there are for signs."""
    monkeypatch.setenv("SUBBIT_PLAN", request.param)
    return request.param


@pytest.fixture(params=PLANS[:3])
def kernels(request, monkeypatch):
    """The plans whose arithmetic is this package's own."""
    monkeypatch.setenv("SUBBIT_PLAN", request.param)
    return request.param


@pytest.fixture
def planner(monkeypatch):
    """The plan is the planner's."""
    monkeypatch.delenv("SUBBIT_PLAN", raising=False)


def on_device(*tensors):
    return tuple(None if t is None else t.to(DEVICE) for t in tensors)


def count_for(plan: str, codewords: int = 32) -> int:
    """So many codewords, or as many as the plan has kernels for."""
    return min(codewords, MOST_SPARSE) if plan == "sparse" else codewords


def weight_of(indices, codebook):
    return PackedWeight.from_indices(indices, codebook).to(DEVICE)


def run(x, indices, codebook, **options):
    """The convolution on the device; what it gives, on the CPU."""
    moved = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    result = conv(x.to(DEVICE), weight_of(indices, codebook), **moved)
    torch.cuda.synchronize()
    return result.to("cpu")


def plan_that_ran(weight: PackedWeight) -> set[str]:
    prepared = weights.find_prepared(
        weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit
    )
    assert prepared is not None
    return {planned.plan for planned in prepared.convs.values()}


def assert_right(y: torch.Tensor, expected: torch.Tensor, plan: str, activation_bits: int) -> None:
    """The same bits; cuDNN, some of whose algorithms are not exact on integers, may be off by 10^-5 of the most."""
    if plan != "dense" or activation_bits == 1:
        assert_same(y, expected)
    else:
        most = expected.abs().max().item()
        torch.testing.assert_close(y.double(), expected.to(y.dtype).double(), rtol=2e-2, atol=1e-5 * most + 1e-9)


def assert_same(y: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit by bit, and the first element that differs."""
    expected = expected.to(y.dtype)
    if not torch.equal(y, expected):
        wrong = (y != expected).nonzero()
        at = tuple(wrong[0].tolist())
        pytest.fail(
            f"{len(wrong)} of {y.numel()} elements differ, first at {at}: {y[at].item()}, not {expected[at].item()}"
        )


def check(
    plan, activation_bits, unit, out_channels, in_channels, codewords, size, *, batch=1, groups=1, seed=0, **given
):
    """A problem of small integers, whose sums are exact in float32."""
    options = given | {"activation_bits": activation_bits, "groups": groups}
    dtype = options.pop("dtype", torch.float32)
    if plan == "sparse" and unit == UNIT_1X1:
        plan = "dense"  # or any other
    count = count_for(plan, codewords)
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], count, seed)
    x = integers(batch, in_channels, *size, seed=seed)
    expected = expected_conv(x, indices, codebook, **options)
    assert_right(run(x.to(dtype), indices, codebook, **options), expected, plan, activation_bits)


def test_what_is_asked_for_is_what_runs(plan):
    for activation_bits in (32,) if plan == "sparse" else (32, 1):
        weight = weight_of(*random_weight(UNIT_3X3, 16, 16, count_for(plan)))
        conv(integers(1, 16, 9, 9).to(DEVICE), weight, activation_bits=activation_bits)
        assert plan_that_ran(weight) == {plan}


@pytest.mark.parametrize("activation_bits", [32, 1])
class TestOracle:
    @pytest.mark.parametrize("codewords", [1, 2, 3, 4, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 255, 256])
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_codebook_sizes(self, plan, activation_bits, unit, codewords):
        check(plan, activation_bits, unit, 70, 40, codewords, (9, 11), padding=(1, 1))

    # Either side of a warp's and a block's outputs of either route (16, 32, 64, 128, 256).
    @pytest.mark.parametrize("out_channels", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 513])
    @pytest.mark.parametrize("codewords", [32, 256])
    def test_output_channels(self, plan, activation_bits, codewords, out_channels):
        check(plan, activation_bits, UNIT_3X3, out_channels, 5, codewords, (6, 7), padding=(1, 1))

    # Either side of a block of units (1, 2, 4), a piece (8), a step of halves (32), a word (64) and a step of bits.
    @pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 130, 512, 513])
    @pytest.mark.parametrize("codewords", [4, 32, 256])
    def test_input_channels(self, plan, activation_bits, in_channels, codewords):
        check(plan, activation_bits, UNIT_3X3, 9, in_channels, codewords, (5, 6), padding=(1, 1))

    # Either side of a tile of pixels (16, 64, 128, 256).
    @pytest.mark.parametrize(
        "size",
        [(1, 1), (1, 7), (7, 1), (3, 5), (7, 7), (1, 16), (1, 17), (1, 63), (2, 64), (3, 65), (1, 257), (40, 41)],
    )
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_image_sizes(self, plan, activation_bits, unit, size):
        check(plan, activation_bits, unit, 40, 16, 32, size, padding=(1, 1), batch=3)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_large_tiles(self, plan, activation_bits, dtype):
        # Enough blocks that both routes take their largest tiles, floats by wgmma where the device has it.
        for unit in (UNIT_3X3, UNIT_1X1):
            check(plan, activation_bits, unit, 130, 72, 32, (57, 55), padding=(1, 1), batch=6, dtype=dtype)
        options = {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 3), "groups": 2, "dtype": dtype}
        check(plan, activation_bits, UNIT_3X3, 320, 208, 256, (57, 55), batch=6, **options)

    @pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (1, 4), (5, 2)])
    @pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (3, 1), (1, 3)])
    @pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 3), (9, 0)])
    def test_geometry(self, plan, activation_bits, stride, dilation, padding):
        options = {"stride": stride, "dilation": dilation, "padding": padding}
        check(plan, activation_bits, UNIT_3X3, 9, 6, 32, (11, 13), **options)
        check(plan, activation_bits, UNIT_1X1, 9, 16, 32, (5, 6), **options)

    @pytest.mark.parametrize("groups", [2, 3, 6])
    def test_groups(self, plan, activation_bits, groups):
        options = {"groups": groups}
        for codewords in (16, 256):
            check(plan, activation_bits, UNIT_3X3, 12, 6, codewords, (7, 8), padding=(1, 1), **options)
            check(
                plan, activation_bits, UNIT_3X3, 66 * groups, 40 * groups, codewords, (7, 8), padding=(1, 1), **options
            )
            check(
                plan, activation_bits, UNIT_3X3, 64 * groups, 64 * groups, codewords, (7, 8), padding=(1, 1), **options
            )
            check(plan, activation_bits, UNIT_1X1, 12, 48, codewords, (7, 8), **options)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_dtypes(self, plan, activation_bits, unit, dtype):
        check(plan, activation_bits, unit, 40, 24, 32, (9, 10), dtype=dtype, padding=(1, 1))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", ["channels_last", "expanded", "transposed", "sliced"])
    def test_strides(self, plan, activation_bits, dtype, layout):
        indices, codebook = random_weight(UNIT_3X3, 10, 8, count_for(plan))
        x = integers(2, 8, 9, 11).to(DEVICE, dtype)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        elif layout == "expanded":
            x = x[:, :1].expand(2, 8, 9, 11)
        elif layout == "transposed":
            x = x.transpose(2, 3)
        else:
            x = integers(3, 20, 19, 23).to(DEVICE, dtype)[1:, 3:11, ::2, 1::2]
        y = conv(x, weight_of(indices, codebook), padding=1, activation_bits=activation_bits)
        assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
        expected = expected_conv(x.cpu().float(), indices, codebook, padding=1, activation_bits=activation_bits)
        assert_right(y.cpu(), expected, plan, activation_bits)

    @pytest.mark.parametrize("sign_zero", [0, 1])
    def test_sign_of_zero(self, plan, activation_bits, sign_zero):
        options = {"sign_zero": sign_zero} if activation_bits == 1 else {}
        check(plan, activation_bits, UNIT_3X3, 9, 6, 32, (8, 9), padding=(1, 1), **options)
        check(plan, activation_bits, UNIT_3X3, 9, 6, 32, (8, 9), padding="same", dilation=3, **options)

    def test_random_problems(self, plan, activation_bits):
        rng = random.Random(f"{plan} {activation_bits}")
        for seed in range(60):
            unit = rng.choice([UNIT_3X3, UNIT_1X1])
            groups = rng.choice([1, 1, 2, 3])
            size = rng.randint(1, 20), rng.randint(1, 40)
            check(
                plan, activation_bits, unit,
                groups * rng.randint(1, 80), groups * unit[0] * rng.randint(1, 40), rng.randint(1, 256), size,
                batch=rng.randint(1, 3), groups=groups, seed=seed,
                stride=(rng.randint(1, 3), rng.randint(1, 3)), padding=(rng.randint(2, 4), rng.randint(2, 4)),
                dilation=(rng.randint(1, 2), rng.randint(1, 2)),
            )  # fmt: skip

    def test_empty_batch(self, plan, activation_bits):
        weight = weight_of(*random_weight(UNIT_3X3, 10, 12, count_for(plan)))
        y = conv(torch.empty(0, 12, 5, 6, device=DEVICE), weight, padding=1, activation_bits=activation_bits)
        assert y.shape == (0, 10, 5, 6)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", ["none", "relu", "hardtanh", "prelu"])
    def test_epilogue_has_the_bits_of_the_cpu(self, plan, activation_bits, dtype, activation):
        """Each operation is rounded by itself in float32, and the result once to the dtype."""
        indices, codebook = random_weight(UNIT_3X3, 37, 12, count_for(plan))
        x = integers(2, 12, 9, 10).to(dtype)
        generator = torch.Generator().manual_seed(1)
        vectors = {name: torch.randn(37, generator=generator) for name in ("scale", "bias", "shift")}
        slope = torch.rand(37, generator=generator) if activation == "prelu" else None
        residual = torch.randn(2, 37, 9, 10, generator=generator).to(dtype)
        options = {"activation_bits": activation_bits, "padding": (1, 1)}
        sums = expected_conv(x.float(), indices, codebook, **options).float()
        expected = Epilogue(activation=activation, slope=slope, residual=residual, **vectors).apply(sums)
        y = run(x, indices, codebook, activation=activation, slope=slope, residual=residual, **vectors, **options)
        assert_right(y, expected, plan, activation_bits)


def test_a_residual_of_another_dtype_is_not_rounded(kernels):
    indices, codebook = random_weight(UNIT_3X3, 10, 8, count_for(kernels))
    x, residual = integers(1, 8, 6, 6).half(), torch.randn(1, 10, 6, 6, generator=torch.Generator().manual_seed(0))
    y = run(x, indices, codebook, padding=1, residual=residual)
    assert y.dtype == torch.float16
    assert_same(y, expected_conv(x.float(), indices, codebook, padding=1).float() + residual)


def test_more_binary_taps_than_16_bits_hold(signs_plan):
    indices, codebook = torch.zeros(3, 4096, dtype=torch.int64), torch.ones(1, 1, 3, 3)
    y = run(torch.full((1, 4096, 3, 3), 7.0), indices, codebook, activation_bits=1)
    assert y.flatten().tolist() == [36864.0] * 3


class TestPacked:
    @pytest.mark.parametrize("channels", [1, 31, 32, 33, 63, 64, 65, 70, 128, 130])
    @pytest.mark.parametrize("sign_zero", [0, 1])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_pack(self, planner, channels, sign_zero, dtype, channels_last):
        x = integers(3, channels, 5, 7).to(dtype)
        x[0, 0, 0, :4] = torch.tensor([NAN, INF, -INF, -0.0])
        shift = integers(channels, seed=1) / 2
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        for given in (None, shift):
            packed = pack(*on_device(x, given), sign_zero)
            expected = pack(x, given, sign_zero)
            assert torch.equal(packed.plus.cpu(), expected.plus)
            assert (packed.nonzero is None) == (expected.nonzero is None)
            assert expected.nonzero is None or torch.equal(packed.nonzero.cpu(), expected.nonzero)

    @pytest.mark.parametrize("in_channels", [8, 64, 72, 128, 200])
    @pytest.mark.parametrize("out_channels", [1, 31, 64, 65, 130])
    @pytest.mark.parametrize("has_zeros", [True, False])
    def test_packed_in_and_out(self, signs_plan, in_channels, out_channels, has_zeros):
        indices, codebook = random_weight(UNIT_3X3, out_channels, in_channels, 32)
        x = integers(2, in_channels, 7, 9)
        packed = pack(x.to(DEVICE), None, 0 if has_zeros else 1)
        expected = expected_conv(signs(x, 0 if has_zeros else 1), indices, codebook, padding=1)
        pack_shift = integers(out_channels, seed=2)
        for pack_sign_zero in (0, 1):
            y, words = conv(
                packed, weight_of(indices, codebook), padding=1, output="both", pack_shift=pack_shift.to(DEVICE),
                pack_sign_zero=pack_sign_zero,
            )  # fmt: skip
            assert_same(y.cpu(), expected)
            assert isinstance(words, PackedActivations)
            shifted = expected.float() + pack_shift[:, None, None]
            assert_same(words.unpack().cpu(), signs(shifted, pack_sign_zero))
            words.to("cpu")._check_bits()
        alone = conv(packed, weight_of(indices, codebook), padding=1, output="packed")
        assert_same(alone.unpack().cpu(), expected.sign())

    @pytest.mark.parametrize("groups", [2, 3])
    @pytest.mark.parametrize("per_group", [24, 64])
    def test_groups(self, signs_plan, groups, per_group):
        indices, codebook = random_weight(UNIT_3X3, groups * per_group, per_group, 16)
        x = integers(1, groups * per_group, 6, 7)
        packed = conv(pack(x.to(DEVICE)), weight_of(indices, codebook), padding=1, groups=groups, output="packed")
        assert_same(packed.unpack().cpu(), expected_conv(x.sign(), indices, codebook, padding=1, groups=groups).sign())

    def test_linear(self, signs_plan):
        indices, codebook = random_weight(UNIT_1X1, 70, 9, 32)
        x = integers(5, 72)
        packed = pack(x.to(DEVICE)[:, :, None, None])
        weight = weight_of(indices, codebook)
        expected = x.sign() @ dense_weight(indices, codebook).flatten(1).T
        assert_same(linear(packed, weight).cpu(), expected)
        assert_same(linear(x.to(DEVICE), weight, activation_bits=1).cpu(), expected)


class TestInt8:
    """Products of signs as GPUs from compute capability 10.0 on have them; sm_90 has the same kernels."""

    @pytest.fixture(autouse=True)
    def later_gpu(self, monkeypatch):
        facts = devices.device_of(DEVICE)
        if facts.capability < 90:
            pytest.skip(f"int8 products are compiled for sm_90 and later ones, not sm_{facts.capability}")
        as_later = facts._replace(capability=max(facts.capability, 100))
        monkeypatch.setattr(devices, "device_of", lambda device: as_later)
        monkeypatch.setenv("SUBBIT_PLAN", "product")

    # Either side of a lane's registers (4, 8), a piece (16), a packed word and a step (64), and a stage (128).
    @pytest.mark.parametrize("in_channels", [1, 3, 4, 5, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 513])
    def test_input_channels(self, in_channels):
        check("product", 1, UNIT_3X3, 70, in_channels, 32, (9, 11), padding=(1, 1))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_large_tiles(self, unit, dtype):
        check("product", 1, unit, 130, 72, 32, (57, 55), padding=(1, 1), batch=6, dtype=dtype)

    @pytest.mark.parametrize("groups", [2, 5])
    def test_groups(self, groups):
        check("product", 1, UNIT_3X3, groups * 12, groups * 21, 32, (9, 8), groups=groups, stride=(2, 1))

    @pytest.mark.parametrize("sign_zero", [0, 1])
    @pytest.mark.parametrize("in_channels", [40, 64, 200])
    def test_packed(self, in_channels, sign_zero):
        indices, codebook = random_weight(UNIT_3X3, 33, in_channels, 32)
        x = integers(2, in_channels, 9, 10)
        words = pack(x.to(DEVICE), sign_zero=sign_zero)
        y = conv(words, weight_of(indices, codebook), padding=(1, 1)).cpu()
        assert_same(y, expected_conv(signs(x, sign_zero), indices, codebook, padding=(1, 1)))

    def test_zeros_and_nan(self):
        indices, codebook = random_weight(UNIT_3X3, 9, 20, 16)
        x = integers(1, 20, 8, 8)
        x[0, 3, 4, 4] = NAN
        for sign_zero in (0, 1):
            values = signs(x, sign_zero)
            values[0, 3, 4, 4] = 0
            y = run(x, indices, codebook, activation_bits=1, sign_zero=sign_zero)
            assert_same(y, expected_conv(values, indices, codebook))


class TestFloats:
    # K products of a unit's taps, exact, are added in some order: at most K roundings of partial sums that sum |x|
    # bounds. The split into bfloat16 parts loses less (csrc/cuda/product/product.cuh).
    @pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 200), (UNIT_1X1, 512)])
    def test_float32_error_bound(self, plan, unit, channels):
        indices, codebook = random_weight(unit, 16, channels // unit[0], count_for(plan))
        x = torch.randn(2, channels, 12, 12, generator=torch.Generator().manual_seed(0))
        y = run(x, indices, codebook, padding=(1, 1))
        magnitude = F.conv2d(x.abs().double(), torch.ones(16, channels, *unit[1:]).double(), padding=1)
        taps = channels * unit[1] * unit[2]
        error = (y - expected_conv(x, indices, codebook, padding=(1, 1))).abs()
        assert (error <= (taps + 1) * 2.0**-24 * magnitude).all()
        assert error.max() < 1e-5 * magnitude.mean()

    @pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8)])
    def test_half_results_are_float32_sums_rounded_once(self, plan, dtype, digits):
        indices, codebook = random_weight(UNIT_3X3, 16, 100, count_for(plan))
        x = torch.randn(1, 100, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
        scale = torch.full((16,), 1 / 7)
        y = run(x, indices, codebook, padding=(1, 1), scale=scale)
        exact = expected_conv(x.float(), indices, codebook, padding=(1, 1)) * scale.double()[:, None, None]
        magnitude = F.conv2d(x.abs().double(), torch.ones(16, 100, 3, 3).double(), padding=1) / 7
        bound = 2.0**-digits * exact.abs() + 901 * 2.0**-23 * magnitude
        if plan == "sparse":  # it rounds responses too (csrc/cuda/sparse/sparse.cuh)
            weight = dense_weight(indices, codebook).double()
            channels = [F.conv2d(x[:, c : c + 1].double(), weight[:, c : c + 1], padding=1).abs() for c in range(100)]
            bound = bound + 2.0**-digits * sum(channels) / 7
        assert ((y.double() - exact).abs() <= bound).all()

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_nan_and_inf_reach_exactly_their_receptive_field(self, kernels, value, dtype):
        indices, codebook = random_weight(UNIT_3X3, 9, 4, count_for(kernels))
        x = integers(1, 4, 9, 21)
        x[0, 2, 4, 10] = value
        y = run(x.to(dtype), indices, codebook, padding=(1, 1))
        expected = F.conv2d(x, dense_weight(indices, codebook), padding=1)
        assert torch.equal(y.isfinite(), expected.isfinite())
        assert torch.equal(y[y.isfinite()].float(), expected[expected.isfinite()])

    def test_binary_nan_counts_as_zero(self, signs_plan):
        indices, codebook = random_weight(UNIT_3X3, 9, 4, 32)
        x = integers(1, 4, 9, 21)
        x[0, 2, 4, 10], x[0, 1, 3, 3] = NAN, INF
        for sign_zero in (0, 1):
            known = torch.where(x == 0, float(sign_zero), x.nan_to_num(0.0)).sign()
            y = run(x, indices, codebook, padding=(1, 1), activation_bits=1, sign_zero=sign_zero)
            assert_same(y, expected_conv(known, indices, codebook, padding=(1, 1)))

    def test_tf32_flags_change_nothing(self, plan, monkeypatch):
        indices, codebook = random_weight(UNIT_3X3, 64, 64, count_for(plan))
        x = torch.randn(2, 64, 14, 14, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        allowed = run(x, indices, codebook, padding=1)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert_same(run(x, indices, codebook, padding=1), allowed)

    def test_autocast_changes_nothing(self, plan):
        indices, codebook = random_weight(UNIT_3X3, 16, 16, count_for(plan))
        x = torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(0))
        plain = run(x, indices, codebook)
        with torch.autocast("cuda", torch.float16):
            assert_same(run(x, indices, codebook), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize(("batch", "side"), [(1, 7), (16, 28)])
def test_50_runs_give_the_same_bits(plan, dtype, activation_bits, batch, side):
    weight = weight_of(*random_weight(UNIT_3X3, 96, 96, count_for(plan)))
    x = torch.randn(batch, 96, side, side, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    first = conv(x, weight, padding=1, activation_bits=activation_bits)
    for _ in range(49):
        assert torch.equal(conv(x, weight, padding=1, activation_bits=activation_bits), first)


class TestTorch:
    @pytest.mark.parametrize("activation", ["none", "prelu"])
    def test_gradients_are_those_of_the_cpu(self, plan, monkeypatch, activation):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of torch's own gradient of x
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 10, 6, count_for(plan)))
        slope = torch.full((10,), 0.25) if activation == "prelu" else None
        given = {"x": integers(2, 6, 7, 8), "scale": torch.ones(10), "bias": integers(10), "slope": slope}
        grads = []
        for device in ("cpu", DEVICE):
            there = {name: None if t is None else t.to(device).detach().requires_grad_() for name, t in given.items()}
            x = there["x"]
            conv(indices=weight.to(device), padding=1, activation=activation, **there).square().sum().backward()
            assert x.grad is not None
            grads.append([t.grad.cpu() for t in there.values() if t is not None])
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)

    def test_compile(self, plan):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 16, 16, count_for(plan)), padding=1).to(DEVICE)
        x = integers(2, 16, 9, 10).to(DEVICE)
        with torch.no_grad():
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(x), layer(x))
            last = x.to(memory_format=torch.channels_last)
            assert compiled(last).stride() == layer(last).stride()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_opcheck(self, plan, dtype, channels_last):
        weight = weight_of(*random_weight(UNIT_3X3, 10, 8, count_for(plan)))
        x = integers(2, 8, 7, 8).to(DEVICE, dtype)
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        geometry = ([1, 1], [1, 1], [1, 1], 1, weight.units, weight.codewords, list(weight.unit))
        scale = torch.ones(10, device=DEVICE)
        arguments = (x, weight.packed_indices, weight.packed_codebook, scale, None, None, None, None, "relu", *geometry)
        torch.library.opcheck(torch.ops.subbit_infer.conv2d.default, (*arguments, 32, 0))
        packed = (*arguments, 1, 0, None, None, 0, True, True)
        torch.library.opcheck(torch.ops.subbit_infer.conv2d_packed.default, packed)
        torch.library.opcheck(torch.ops.subbit_infer.pack.default, (x, None, 0))

    @pytest.mark.parametrize("activation_bits", [32, 1])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_capture(self, plan, activation_bits, dtype):
        weight = weight_of(*random_weight(UNIT_3X3, 40, 24, count_for(plan)))
        x = integers(2, 24, 9, 10).to(DEVICE, dtype)
        options = {
            "padding": 1,
            "activation_bits": activation_bits,
            "output": "both",
            "scale": torch.ones(40).to(DEVICE),
        }
        conv(x, weight, **options)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, packed = conv(x, weight, **options)
        for seed in (1, 2):
            x.copy_(integers(2, 24, 9, 10, seed=seed))
            graph.replay()
            expected, signs_expected = conv(x, weight, **options)
            assert torch.equal(y, expected)
            assert torch.equal(packed.plus, signs_expected.plus)

    def test_capture_of_a_weight_that_was_never_used_is_refused(self, planner):
        weight, x = weight_of(*random_weight(UNIT_3X3, 8, 8, 4)), torch.ones(1, 8, 5, 5, device=DEVICE)
        with pytest.raises(RuntimeError, match="call it once with such an input before the capture"):  # noqa: SIM117
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                conv(x, weight)
        torch.cuda.synchronize()
        conv(x, weight)

    def test_no_call_waits_for_the_device(self, plan):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 16, 16, count_for(plan)), padding=1).to(DEVICE)
        binary = nn.SubbitConv2d.from_indices(
            *random_weight(UNIT_3X3, 16, 16, count_for(plan)), padding=1, activation_bits=1, output="packed"
        ).to(DEVICE)
        x = integers(2, 16, 9, 10).to(DEVICE)
        with torch.no_grad():
            binary(binary(layer(x)))
            try:
                torch.cuda.set_sync_debug_mode("error")
                binary(binary(layer(x)))
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def test_streams(self, plan):
        """A call comes after what its stream holds, and before what follows on it."""
        weight = weight_of(*random_weight(UNIT_3X3, 32, 32, count_for(plan)))
        x = integers(8, 32, 28, 28).to(DEVICE)
        expected = conv(x, weight, padding=1)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(20):
                late = torch.zeros_like(x)
                torch.cuda._sleep(2_000_000)
                late.copy_(x)
                y = conv(late, weight, padding=1)
                late.zero_()
                total = y.clone()
        stream.synchronize()
        assert torch.equal(total, expected)

    @pytest.mark.skipif(REASON is not None or torch.cuda.device_count() < 2, reason="one device")
    def test_devices(self, plan):
        weight, x = PackedWeight.from_indices(*random_weight(UNIT_3X3, 10, 12, count_for(plan))), integers(1, 12, 7, 8)
        results = []
        for index in (1, 0):  # the current device is 0
            y = conv(x.to(f"cuda:{index}"), weight.to(f"cuda:{index}"))
            assert y.device.index == index
            results.append(y.cpu())
        assert torch.equal(*results)
        assert torch.cuda.current_device() == 0
        with pytest.raises(ValueError, match="must be on one device"):
            conv(x.to("cuda:1"), weight.to("cuda:0"))

    def test_threads(self, kernels):
        indices, codebook = random_weight(UNIT_3X3, 20, 16, count_for(kernels))
        expected = [expected_conv(integers(1, 16, 9, 9 + i), indices, codebook, padding=1) for i in range(4)]
        weight, wrong = weight_of(indices, codebook), []

        def work(i: int) -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                x = integers(1, 16, 9, 9 + i).to(DEVICE)
                for _ in range(50):
                    y = conv(x, weight, padding=1).cpu()
                    if not torch.equal(y, expected[i].float()):
                        wrong.append(i)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert wrong == []

    def test_changes_in_place_are_seen(self, plan):
        indices, codebook = random_weight(UNIT_3X3, 10, 8, count_for(plan))
        weight, other = weight_of(indices, codebook), weight_of(indices.flip(0), codebook)
        x = integers(1, 8, 6, 7).to(DEVICE)
        conv(x, weight)
        weight.packed_indices.copy_(other.packed_indices)
        assert torch.equal(conv(x, weight), conv(x, other))

    def test_indices_out_of_range_are_refused(self, planner):
        weight = weight_of(*random_weight(UNIT_3X3, 10, 8, 5))
        weight.packed_indices.fill_(255)
        with pytest.raises(ValueError, match=r"indices must be in \[0, 5\)"):
            conv(torch.ones(1, 8, 5, 5, device=DEVICE), weight)


@pytest.mark.parametrize("fold", [False, True])
def test_convert_on_the_device(planner, fold):
    dense = models.resnet18(num_classes=10)
    models.make_subbit_weights(dense)
    dense = dense.to(DEVICE).eval()
    x = torch.rand(2, 3, 64, 64, device=DEVICE)
    converted, report = convert(dense, x, fold=fold, verify=True, tolerance=1e-3)
    assert len(report.converted) == 16
    assert converted(x).device == x.device


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codewords", [4, 8, 32, 256])
def test_the_check_before_the_first_use(kernels, unit, codewords, dtype, activation_bits):
    assert convolution._is_right(kernels, DEVICE, unit, codewords, dtype, activation_bits == 1)


class TestModules:
    def test_cuda_and_back(self, planner):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 10, 8, 32), padding=1)
        x = integers(1, 8, 6, 7)
        expected = layer(x)
        assert torch.equal(layer.cuda()(x.to(DEVICE)).cpu(), expected)
        assert torch.equal(layer.cpu()(x), expected)

    def test_state_dict_stays_as_it_was(self, planner):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 10, 8, 32)).cuda()
        before = {name: t.clone() for name, t in layer.state_dict().items()}
        layer(torch.ones(1, 8, 5, 5, device=DEVICE))
        after = layer.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_explain(self, plan):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 64, 64, count_for(plan)), padding=1).cuda()
        explanation = explain(layer, torch.ones(4, 64, 14, 14, device=DEVICE), print=None)
        (said,) = explanation.layers
        assert (said.plan, said.device) == (plan, "cuda")
        assert plan_that_ran(layer.packed_weight()) == {plan}
        assert {c.plan for c in said.candidates} == set(PLANS) - ({"sparse"} if plan != "sparse" else set())
        assert torch.cuda.get_device_name(0) in str(explanation)

    def test_other_units_run_the_reference(self, planner):
        indices, codebook = random_weight((1, 2, 3), 6, 4, 8)
        x = integers(1, 4, 6, 7)
        y = conv(x.to(DEVICE), weight_of(indices, codebook))
        assert torch.equal(y.cpu(), F.conv2d(x, dense_weight(indices, codebook)))
