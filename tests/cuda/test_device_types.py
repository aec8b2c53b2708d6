"""What a device makes of packed activations, of int8 and of floats that are not integers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from device_tests import DEVICE, DTYPES, INF, NAN, REASON, assert_same, check, count_for, on_device, run, weight_of
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, expected_conv, integers, random_weight, signs

from subbit_infer import PackedActivations, conv, linear, pack
from subbit_infer.backends.cuda import device as cuda_device

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(REASON is not None, reason=f"no CUDA kernels: {REASON}")]


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
    def test_packed_in_and_out(self, binary_plan, in_channels, out_channels, has_zeros):
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
    def test_groups(self, binary_plan, groups, per_group):
        indices, codebook = random_weight(UNIT_3X3, groups * per_group, per_group, 16)
        x = integers(1, groups * per_group, 6, 7)
        packed = conv(pack(x.to(DEVICE)), weight_of(indices, codebook), padding=1, groups=groups, output="packed")
        assert_same(packed.unpack().cpu(), expected_conv(x.sign(), indices, codebook, padding=1, groups=groups).sign())

    def test_linear(self, binary_plan):
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
        facts = cuda_device.device_of(DEVICE)
        if facts.capability < 90:
            pytest.skip(f"int8 products are compiled for sm_90 and later ones, not sm_{facts.capability}")
        as_later = facts._replace(capability=max(facts.capability, 100))
        monkeypatch.setattr(cuda_device, "device_of", lambda device: as_later)
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
    # bounds. The split into bfloat16 parts loses less (csrc/cuda/product/kernel.cuh).
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
        if plan == "sparse":  # it rounds responses too (csrc/cuda/sparse/kernel.cuh)
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

    def test_binary_nan_counts_as_zero(self, binary_plan):
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
