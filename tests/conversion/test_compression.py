"""compress: what it makes of weights, layers, budgets and reports, against the definitions written out."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, random_weight
from torch import Tensor, nn
from torch.nn.utils import parametrize

import subbit_infer
from subbit_infer import models
from subbit_infer.conversion.compression import METHODS
from subbit_infer.conversion.detection import recognize
from subbit_infer.core import codebook
from subbit_infer.nn import SubbitConv2d, SubbitLinear


def network(seed: int = 0) -> nn.Sequential:
    """One layer of every kind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.Conv2d(24, 24, 3, padding=1, groups=24),
            nn.Conv2d(24, 32, 1),
            nn.Conv2d(32, 16, 3, padding=1, groups=2),
            nn.Conv2d(16, 12, 5),
            nn.Conv2d(12, 8, 1),
            nn.Conv2d(8, 8, 3),
            nn.Flatten(),
            nn.Linear(32, 10),
        )


def by_name(report: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in report.layers}


def units_by_hand(weight: Tensor) -> list[tuple[float, ...]]:
    """Every unit's values, flat: 3x3 kernels, or 8 consecutive channels."""
    taps = 9 if weight.shape[-1] == 3 else 8
    return [tuple(row) for row in weight.reshape(-1, taps).tolist()]


def test_the_package_has_it() -> None:
    assert callable(subbit_infer.compress)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tau", [1, 4, 8])
def test_a_copy_is_subbit_and_the_model_stays(method: str, tau: int) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    compressed, report = subbit_infer.compress(model, tau, method)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    names = [layer.name for layer in report.converted]
    assert names == ["2", "4", "5", "8"]
    for name in names:
        weight = recognize(compressed.get_submodule(name).weight)
        assert weight.codewords <= 2**tau
        assert by_name(report)[name].tau == weight.tau
    changed = {key for key, value in compressed.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.weight" for name in names}


def test_nearest_codewords_of_the_most_frequent_and_their_least_squares_scale() -> None:
    model = network()
    compressed, report = subbit_infer.compress(model, 4)
    for name in ("2", "4"):
        old, new = model.get_submodule(name).weight, compressed.get_submodule(name).weight
        counts = Counter(tuple(1.0 if v >= 0 else -1.0 for v in unit) for unit in units_by_hand(old))
        # Most frequent first, and among equals the one whose bits are the lower number.
        codewords = sorted(counts, key=lambda unit: (-counts[unit], unit))[:16]
        signs = new.sign()
        for unit, chosen in zip(units_by_hand(old), units_by_hand(signs), strict=True):
            products = [sum(a * b for a, b in zip(unit, word, strict=True)) for word in codewords]
            assert chosen in codewords
            assert products[codewords.index(chosen)] == pytest.approx(max(products), abs=1e-6)
        best = (old * signs).mean(dim=(1, 2, 3))
        alpha = new[:, 0, 0, 0].abs()
        torch.testing.assert_close(alpha, best, rtol=2**-11, atol=0)
        assert torch.equal(new, alpha[:, None, None, None] * signs)
        error = ((new - old).norm() / old.norm()).item()
        assert by_name(report)[name].error == pytest.approx(error, rel=1e-5)


def test_scales_add_up_exactly_in_any_order() -> None:
    compressed, _ = subbit_infer.compress(nn.Sequential(nn.Conv2d(512, 8, 3)), layers=["0"])
    alpha = compressed[0].weight.detach()[:, 0, 0, 0].abs()
    sums = torch.arange(4609)[:, None] * alpha.double()
    assert torch.equal(sums.float().double(), sums)


@pytest.mark.parametrize("method", METHODS)
def test_a_binary_weight_keeps_its_scale_and_counts_changed_signs(method: str) -> None:
    conv = nn.Conv2d(64, 32, 3)
    alpha = torch.rand(32, 1, 1, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(2)).sign() * alpha)
    compressed, report = subbit_infer.compress(conv, 3, method, layers=[""])
    assert torch.equal(compressed.weight.abs(), conv.weight.abs())
    (layer,) = report.layers
    assert layer.error == pytest.approx(float((compressed.weight != conv.weight).float().mean()))
    assert layer.error > 0.1


def test_kmeans_changes_fewer_signs() -> None:
    conv = nn.Conv2d(64, 32, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(3)).sign())
    errors = {m: subbit_infer.compress(conv, 4, m, layers=[""]).report.layers[0].error for m in METHODS}
    assert all(errors["kmeans"] < error for method, error in errors.items() if method != "kmeans")


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("method", ["frequent", "kmeans"])
def test_a_subbit_weight_stays_as_it_is(unit: tuple[int, int, int], method: str) -> None:
    dense = 0.3 * dense_weight(*random_weight(unit, 16, 8, 16))
    conv = nn.Conv2d(dense.shape[1], 16, unit[1:], bias=False)
    with torch.no_grad():
        conv.weight.copy_(dense)
    compressed, report = subbit_infer.compress(conv, 4, method, layers=[""])
    assert torch.equal(compressed.weight, dense)
    assert report.layers[0].error == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_is_subbit(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(16, 16, 3).to(dtype)
    compressed, _ = subbit_infer.compress(conv, 4, layers=[""])
    assert compressed.weight.dtype == dtype
    assert recognize(compressed.weight).codewords <= 16


def test_what_it_gives_runs_on_subbit_layers() -> None:
    compressed, report = subbit_infer.compress(network(), 5, "kmeans", layers=["2", "10"])
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    conv = SubbitConv2d.from_dense(compressed[2])
    torch.testing.assert_close(conv(x), compressed[2](x), rtol=1e-4, atol=1e-5)
    linear = SubbitLinear.from_dense(compressed[10])
    torch.testing.assert_close(linear(x[:, 0, :8, :4].flatten(1)), compressed[10](x[:, 0, :8, :4].flatten(1)))
    sizes = {layer.name: layer.nbytes for layer in report.converted}
    assert sizes == {"2": conv.packed_weight().nbytes, "10": linear.packed_weight().nbytes}


def test_a_network_of_binary_activations_gives_the_same_bits_dense_and_subbit() -> None:
    model = models.vgg_small(1)
    models.calibrate(model, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    compressed, _ = subbit_infer.compress(model, 4, layers=[name for name, _ in models.body_convs(model)])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(models.to_subbit(compressed)(x), compressed(x))


def test_why_layers_are_skipped() -> None:
    why = {layer.name: layer.why for layer in subbit_infer.compress(network()).report.skipped}
    assert list(why) == ["0", "3", "6", "7", "10"]
    for name, text in {
        "0": "first convolution",
        "3": "depthwise",
        "6": "no kernels for 5x5 units",
        "7": "12 input channels do not divide into units of 8",
        "10": "linear layers",
    }.items():
        assert text in why[name]
    named = subbit_infer.compress(network(), layers=["0", "3", "10"]).report
    assert [layer.name for layer in named.converted] == ["0", "3", "10"]
    assert {layer.why for layer in named.skipped} == {"not among the layers given"}


def test_a_second_convolution_of_few_channels_stays() -> None:
    model = nn.ModuleList([nn.Conv2d(16, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(5, 8, 3)])
    report = subbit_infer.compress(model).report
    assert [layer.name for layer in report.converted] == ["2"]
    assert "4 input channels" in report.layers[1].why


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["2"], ["2"]),
        (("[25]", "10"), ["2", "5", "10"]),
        (iter(["2", "2"]), ["2"]),
        (lambda name, module: isinstance(module, nn.Linear), ["10"]),
        ([], []),
    ],
)
def test_layers_are_named_by_names_patterns_or_a_function(layers: Any, names: list[str]) -> None:
    assert [layer.name for layer in subbit_infer.compress(network(), layers=layers).report.converted] == names


def test_tau_by_layer_the_first_match_counts() -> None:
    report = subbit_infer.compress(network(), {"5": 2, "[2-5]": 3, "*": 1}, layers=["2", "5", "8"]).report
    assert {layer.name: layer.tau for layer in report.converted} == {"2": 3, "5": 2, "8": 1}


@pytest.mark.parametrize("method", ["frequent", "kmeans"])
def test_max_bits_is_kept_and_used(method: str) -> None:
    model = models.vgg_small(1)
    names = [name for name, _ in models.body_convs(model)]
    report = subbit_infer.compress(model, None, method, layers=names, max_bits=0.4).report
    kernels = [layer.shape[0] * layer.shape[1] for layer in report.converted]
    left = 0.4 * 9 * sum(kernels) - sum(layer.tau * n for layer, n in zip(report.converted, kernels, strict=True))
    assert 0 <= left < min(kernels), "another bit would fit"
    even = subbit_infer.compress(model, 3, method, layers=names).report
    assert max(layer.error for layer in report.converted) <= max(layer.error for layer in even.converted)


def test_max_error_takes_the_least_tau_that_is_enough() -> None:
    model = network()
    _, report = subbit_infer.compress(model, None, max_error=0.75)
    for layer in report.converted:
        assert layer.error <= 0.75
        if layer.tau > 1:
            assert by_name(subbit_infer.compress(model, layer.tau - 1).report)[layer.name].error > 0.75
    _, strict = subbit_infer.compress(model, None, max_error=0.1)
    assert strict.converted == ()
    assert "at tau 8, over max_error" in by_name(strict)["2"].why


def test_a_layer_that_needs_no_more_bits_gets_none() -> None:
    """Two distinct units take one bit, however many there are to give."""
    model = nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    _, report = subbit_infer.compress(model, None, max_bits=1, layers=["*"])
    assert [layer.tau for layer in report.layers] == [
        1,
        8 if report.layers[1].codewords > 128 else report.layers[1].tau,
    ]
    assert report.layers[0].error == 0


def test_a_channel_that_no_codeword_fits_gets_a_scale_of_almost_nothing() -> None:
    conv = nn.Conv2d(8, 4, 1, bias=False)
    words = codebook.vanilla(1, UNIT_1X1, seed=0)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(4, 8, 1, 1, generator=torch.Generator().manual_seed(0)))
        conv.weight[1] = -words.sum(0)  # at right angles to both codewords, or opposite
        conv.weight[2] = 0
    compressed, report = subbit_infer.compress(conv, 1, "vanilla", layers=[""])
    scale = recognize(compressed.weight).scale
    assert (scale > 0).all()
    assert (scale[1:3] < 1e-5).all()
    assert "channels no codewords fit" in report.layers[0].why


@pytest.mark.parametrize("bias", [False, True])
def test_parametrized_weights_become_plain(bias: bool) -> None:
    class Sign(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 0.25 * weight.sign()

    model = nn.Sequential(nn.Conv2d(16, 16, 3))
    parametrize.register_parametrization(model[0], "weight", Sign())
    if bias:
        parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    compressed, report = subbit_infer.compress(model, 3, layers=["0"])
    assert parametrize.is_parametrized(model[0])
    assert not parametrize.is_parametrized(compressed[0], "weight")
    assert parametrize.is_parametrized(compressed[0]) == bias
    assert torch.equal(compressed[0].weight.abs(), torch.full((16, 16, 3, 3), 0.25))
    assert report.layers[0].error == pytest.approx(float((compressed[0].weight != model[0].weight).float().mean()))


def hooked() -> nn.Module:
    with torch.no_grad(), pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv2d(8, 8, 3))


def test_refuses_what_cannot_be_copied() -> None:
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"model must be one that copy\.deepcopy copies: .*weight_norm"):
        subbit_infer.compress(model)


def shared() -> nn.Module:
    model = nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
    model[1].weight = model[0].weight
    return model


def filled(value: float) -> nn.Module:
    conv = nn.Conv2d(8, 8, 3)
    nn.init.constant_(conv.weight, value)
    return conv


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (hooked, "weight is no parameter"),
        (shared, "has the same weight"),
        (lambda: filled(0), "all weights are 0"),
        (lambda: filled(float("nan")), "not finite"),
        (lambda: nn.Conv2d(8, 8, 3).double(), "weights are float64"),
        (lambda: nn.Conv2d(8, 8, 3, device="meta"), "meta device"),
    ],
)
def test_weights_that_cannot_be_compressed_are_skipped(make: Any, why: str) -> None:
    model = make()
    compressed, report = subbit_infer.compress(model, layers=["*"])
    assert report.converted == ()
    assert all(why in layer.why for layer in report.layers)
    assert report.notes == ()
    assert list(compressed.state_dict()) == list(model.state_dict())


def test_the_report_says_to_check_the_accuracy() -> None:
    _, report = subbit_infer.compress(network(), 4)
    assert "check the accuracy" in str(report)
    assert "Indices take 0.4" in str(report)
    assert "error" in str(report).splitlines()[0]
    assert all(layer.activation_bits is None for layer in report.layers)
    assert "None" not in str(report)


def test_a_seed_repeats_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (subbit_infer.compress(network(), 3, "vanilla", seed=s).model.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["2.weight"], other["2.weight"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "best"}, ValueError, "method must be one of 'frequent', 'kmeans', .* got 'best'"),
        ({"tau": 9}, ValueError, "tau must be 1 to 8, got 9"),
        ({"tau": 0}, ValueError, "tau must be 1 to 8, got 0"),
        ({"tau": True}, TypeError, "tau must be an integer or a dict of integers, got bool"),
        ({"tau": {"*": 2.5}}, TypeError, "got float"),
        ({"tau": {"2": 3}}, ValueError, "'4' is missing: add '\\*'"),
        ({"tau": {"nothing": 3, "*": 2}}, ValueError, "tau must name .* got 'nothing'"),
        ({"tau": {3: 3, "*": 2}}, TypeError, "tau must have names or patterns, got int"),
        ({"tau": None}, ValueError, "exactly one of tau, max_bits and max_error"),
        ({"max_bits": 0.5}, ValueError, "exactly one of .* got tau=5, max_bits=0.5"),
        ({"tau": None, "max_bits": 0.5, "max_error": 0.5}, ValueError, "exactly one of"),
        ({"tau": None, "max_bits": 0.1}, ValueError, "max_bits must be at least 0.11.* got 0.1"),
        ({"tau": None, "max_bits": "0.5"}, TypeError, "max_bits must be a number, got str"),
        ({"tau": None, "max_error": float("nan")}, ValueError, "max_error must be at least 0, got nan"),
        ({"layers": "2"}, TypeError, "got the string '2': put it into a list"),
        ({"layers": ["2", "typo"]}, ValueError, "layers must name Conv2d or Linear layers of the model, got 'typo'"),
        ({"layers": ["1"]}, ValueError, "got '1'"),
        ({"layers": [2]}, TypeError, "layers must have names or patterns, got int"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        subbit_infer.compress(network(), **arguments)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        subbit_infer.compress({})  # type: ignore[arg-type]
