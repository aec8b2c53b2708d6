"""Graphs of whole networks and exported programs."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from graph_models import C, X, layers, norm, subbit_conv
from torch import nn

from subbit_infer import models
from subbit_infer.conversion.graph import capture, rewrite, rewrite_program


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (models.resnet18, {"activation_bits": 32}),
        (models.resnet18, {"activation_bits": 1}),
        (models.resnet50, {"activation_bits": 32}),
        (models.vgg_small, {"activation_bits": 1}),
        (models.reactnet18, {}),
    ],
)
def test_networks(make, options):
    model = make(**options)
    models.make_subbit_weights(model)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models.calibrate(model, images)  # with two of them, variances of last layers' single pixels are near 0
    x = images[:2]
    new, report = rewrite(capture(model, (x,)))
    by_hand = models.to_subbit(model)
    assert len(layers(new)) == len(layers(by_hand)) == len(report.converted)
    with torch.no_grad():
        expected = model(x)
        # Random networks magnify rounding: ResNet-50 to 7e-5 of the largest output.
        torch.testing.assert_close(new(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


class TestPrograms:
    def program(self, model, *inputs, **options):
        return torch.export.export(model.eval(), inputs, **options)

    @pytest.mark.parametrize("folds", [False, True])
    def test_a_file_in_a_fresh_process(self, tmp_path, folds):
        model = nn.Sequential(subbit_conv(), norm(), nn.ReLU(), subbit_conv(seed=1)).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        new, _ = rewrite_program(self.program(model, X, dynamic_shapes=({0: batch},)), folds=folds)
        torch.export.save(new, tmp_path / "new.pt2")
        with torch.no_grad():
            torch.save((X, model(X)), tmp_path / "xy.pt")
        code = textwrap.dedent(f"""
            import torch, subbit_infer
            program = torch.export.load({str(tmp_path / "new.pt2")!r})
            assert sum("subbit_infer.conv2d" in str(n.target) for n in program.graph.nodes) == 2
            x, y = torch.load({str(tmp_path / "xy.pt")!r})
            with torch.no_grad():
                for module in (program.module(), torch.compile(program.module(), fullgraph=True, backend="aot_eager")):
                    torch.testing.assert_close(module(x), y, rtol=1e-4, atol=1e-4)
                    assert module(x[:1]).shape[0] == 1
                    assert module(torch.cat([x, x, x])).shape[0] == 6
        """)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)  # not the source tree

    def test_ahead_of_time(self, tmp_path):
        """AOTInductor makes a package of it, which calls the operators that this package registers."""
        model = nn.Sequential(subbit_conv(), norm(), nn.ReLU(), subbit_conv(seed=1)).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        new, _ = rewrite_program(self.program(model, X, dynamic_shapes=({0: batch},)), folds=True)
        path = torch._inductor.aoti_compile_and_package(new, package_path=str(tmp_path / "new.pt2"))
        package = torch._inductor.aoti_load_package(path)
        with torch.no_grad():
            for images in (X, X[:1], torch.cat([X, X, X])):
                torch.testing.assert_close(package(images), model(images), rtol=1e-5, atol=1e-3)

    def test_its_signature_stays(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = subbit_conv()

            def forward(self, images, factor, *, mask=None):
                return {"y": self.conv(images) * factor, "rest": (mask + 1,)}

        model = Model()
        args, kwargs = (X, torch.tensor(2.0)), {"mask": torch.ones(3)}
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes={"images": {0: torch.export.Dim("n")}, "factor": None, "mask": None}
        )
        new, report = rewrite_program(program, folds=True)
        assert len(report.converted) == 1
        with torch.no_grad():
            y = new.module()(*args, **kwargs)
            expected = model(*args, **kwargs)
            torch.testing.assert_close(y, expected)
            assert new.module()(X[:1], torch.tensor(1.0), mask=torch.ones(3))["y"].shape[0] == 1

    def test_fixed_sizes_stay_fixed(self):
        new, _ = rewrite_program(self.program(nn.Sequential(subbit_conv()), X))
        with pytest.raises(Exception, match=r"Guard failed|shape"):
            new.module()(X[:1])

    def test_nothing_to_do(self):
        program = self.program(nn.Conv2d(C, C, 3), X)
        new, report = rewrite_program(program)
        assert new is program
        assert report.converted == ()
