"""Graphs: which layers are found, which stay dense, and what cannot be traced."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from graph_models import C, Lambda, X, layers, norm, operators, rewritten, subbit_conv
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, random_weight
from torch import nn

from subbit_infer.conversion.graph import capture, rewrite, rewrite_program
from subbit_infer.nn import SubbitConv2d, SubbitLinear


class TestFind:
    @pytest.mark.parametrize("folds", [False, True])
    @pytest.mark.parametrize("kernel", [1, 3])
    def test_a_convolution(self, kernel, folds):
        new, report = rewritten(nn.Sequential(subbit_conv(kernel=kernel, bias=True)), X, folds)
        assert [(r.name, r.tau, r.activation_bits, r.has_scale) for r in report.layers] == [("0", 4, 32, True)]
        assert isinstance(new.get_submodule("0"), SubbitConv2d)
        assert not [name for name in operators(new) if "conv" in name]

    def test_geometry(self):
        conv = subbit_conv(stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2)
        (layer,) = layers(rewritten(conv, X)[0])
        assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 1), (2, 1), (1, 2), 2)

    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_padding_by_name(self, padding):
        rewritten(nn.Sequential(subbit_conv(padding=padding), nn.ReLU()), X)

    def test_linear(self):
        linear = nn.Linear(C, 24)
        linear.weight.data = 0.25 * dense_weight(*random_weight(UNIT_1X1, 24, 2, 16))[:, :, 0, 0]
        model = Lambda(lambda m, x: F.relu(m[0](x.mean((2, 3)))), linear)
        new, report = rewritten(model, X)
        (layer,) = layers(new)
        assert isinstance(layer, SubbitLinear)
        assert layer.activation == "relu"
        assert report.layers[0].shape == (24, C)

    def test_what_computes_its_weight(self):
        """As training code does: alpha times sign, with the gradient of another function."""

        class Binary(nn.Conv2d):
            def forward(self, x):
                alpha = self.weight.abs().mean((1, 2, 3), keepdim=True).detach()
                signs, smooth = alpha * self.weight.sign(), self.weight.clamp(-1, 1)
                return F.conv2d(x, signs.detach() - smooth.detach() + smooth, None, self.stride, self.padding)

        conv = Binary(C, C, 3, padding=1)
        conv.weight.data = dense_weight(*random_weight(UNIT_3X3, C, C, 16)) * torch.rand(C, C, 1, 1)
        new, report = rewritten(nn.Sequential(conv), X)
        assert [r.name for r in report.converted] == ["0"]
        assert not [name for name in operators(new) if "sign" in name or "clamp" in name]

    def test_why_not(self):
        model = nn.Sequential(nn.Conv2d(C, C, 3), nn.Conv2d(C, C, 5), subbit_conv())
        _, report = rewritten(model, X)
        assert "magnitudes" in report.layers[0].why
        assert "5x5" in report.layers[1].why
        assert report.layers[2].is_converted
        assert "skipped: no kernels for 5x5 units" in str(report)

    def test_a_weight_that_depends_on_the_input(self):
        model = Lambda(lambda m, x: F.conv2d(x, x[:1, :, :3, :3].sign(), padding=1))
        _, report = rewritten(model, X)
        assert report.layers[0].why == "its weight depends on the input"

    def test_shared_weights_are_shared(self):
        conv = subbit_conv()
        new, report = rewritten(Lambda(lambda m, x: m[1](m[0](m[0](x))), conv, norm()), X)
        first, second = layers(new)
        assert [r.name for r in report.layers] == ["m.0", "m.0_2"]
        assert first.packed_indices.data_ptr() == second.packed_indices.data_ptr()
        assert first.bias is None
        assert second.bias is not None

    def test_a_parameter_that_is_read_elsewhere_stays(self):
        model = Lambda(lambda m, x: m[0](x) + m[0].weight.sum(), subbit_conv())
        rewritten(model, X)

    def test_decomposed_programs(self):
        model = nn.Sequential(subbit_conv(bias=True), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(C * 64, 8)).eval()
        model[4].weight.data = dense_weight(*random_weight(UNIT_1X1, 8, C * 8, 16))[:, :, 0, 0]
        program = torch.export.export(model, (X,)).run_decompositions()
        new, report = rewrite_program(program, folds=True)
        assert len(report.converted) == 2
        with torch.no_grad():
            torch.testing.assert_close(new.module()(X), model(X), rtol=1e-5, atol=1e-3)


class TestDense:
    def test_what_stays_dense(self):
        model = nn.Sequential(nn.Conv2d(3, C, 7, 2, 3), norm(), nn.ReLU(), nn.MaxPool2d(3, 2, 1), subbit_conv())
        new, _ = rewritten(model, torch.randn(2, 3, 32, 32))
        assert operators(new) == [f"aten.{name}.default" for name in ("conv2d", "max_pool2d", "relu", "contiguous")]

    def test_strided_pointwise_convolutions(self):
        model = nn.Sequential(nn.Conv2d(C, 32, 1, (2, 3)), nn.Conv2d(32, C, 1, 2, 1), subbit_conv())
        rewritten(model, torch.randn(2, C, 33, 31))

    def test_a_norm_of_two_readers(self):
        model = Lambda(lambda m, x: (m[1](m[0](x)), m[0](x).sum(1)), nn.Conv2d(C, C, 3), norm())
        rewritten(model, X)


class TestCapture:
    def test_what_cannot_be_traced(self):
        class Branch(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        with pytest.raises(ValueError, match=r"torch\.export must be able to trace Branch"):
            capture(Branch(), (X,))

    def test_a_batch_of_one_is_not_all_there_is(self):
        new, _ = rewrite(capture(nn.Sequential(subbit_conv()), (X[:1],)))
        assert new(X).shape[0] == 2

    def test_the_result_can_be_copied_and_put_to_eval(self):
        new, _ = rewrite(capture(nn.Sequential(subbit_conv(), norm()).eval(), (X,)))
        assert torch.equal(copy.deepcopy(new).eval()(X), new(X))

    def test_sizes_are_checked_though_not_at_every_call(self):
        """Sizes that have just passed the checks are not checked again; others are."""
        linear = nn.Linear(C * 64, 4)
        model = Lambda(lambda m, x: m[1](m[0](x).flatten(1)), subbit_conv(), linear)
        new, _ = rewrite(capture(model.eval(), (X,)))
        with torch.no_grad():
            for _ in range(2):
                for images in (X, X, X[:1]):
                    torch.testing.assert_close(new(images), model(images), rtol=1e-4, atol=1e-4)
                    with pytest.raises(AssertionError, match="Guard failed"):
                        new(torch.cat([images, images], 2))

    def test_a_signature_of_trees_stays(self):
        class Trees(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = subbit_conv()

            def forward(self, pair, *, scale):
                return {"sum": self.conv(pair[0]) + pair[1] * scale}

        model = Trees().eval()
        program = torch.export.export(model, ((X, X),), {"scale": X})
        new, _ = rewrite_program(program)
        with torch.no_grad():
            torch.testing.assert_close(
                new.module()((X, X), scale=X)["sum"], model((X, X), scale=X)["sum"], rtol=1e-5, atol=1e-4
            )
