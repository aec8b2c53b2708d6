"""Checkpoints of the published training code, against that code's arithmetic written down again in plain torch."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subbit_infer.core import codebook
from subbit_infer.formats import checkpoint
from subbit_infer.formats.checkpoint import AmbiguousSign, load_snn, snn_model
from subbit_infer.nn import SubbitConv2d

# ---- the published network, for evaluation ----


class Binarize(nn.Module):
    """The codewords nearest to latent kernels; of a sign that the patterns leave open, the pattern's own."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.patterns = nn.Parameter(patterns)

    def forward(self, latent: Tensor) -> Tensor:
        words = torch.where(self.patterns < 0, -1.0, 1.0)
        distances = torch.norm(latent.reshape(-1, 1, 9) - words, dim=2)
        binary = words[distances.argmin(1)].reshape(latent.shape)
        clipped = latent.clamp(-1, 1)
        return (binary - clipped) + clipped


class BinaryConv(nn.Module):
    def __init__(self, latent: Tensor, patterns: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(latent)
        self.binarize = Binarize(patterns)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)
        return F.conv2d(x, scale * self.binarize(self.weight), stride=self.stride, padding=1)


class Bias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Block(nn.Module):
    def __init__(self, channels: int, width: int, tau: int, stride: int) -> None:
        super().__init__()
        self.move0 = Bias(channels)
        self.binary_conv = BinaryConv(exact_latent(width, channels), random_patterns(tau), stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.move1 = Bias(width)
        self.prelu = nn.PReLU(width)
        self.move2 = Bias(width)
        self.downsample = None
        if stride != 1:
            conv = nn.Conv2d(channels, width, 1, bias=False)
            self.downsample = nn.Sequential(nn.AvgPool2d(2, stride), conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.binary_conv(self.move0(x).sign()))
        y = y + (x if self.downsample is None else self.downsample(x))
        return self.move2(self.prelu(self.move1(y)))


class Network(nn.Module):
    def __init__(self, depths: tuple[int, ...], classes: int, tau: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            blocks = [Block(channels, width, tau, 2 if stage else 1)]
            blocks += [Block(width, width, tau, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = width
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def exact_latent(out_channels: int, in_channels: int) -> Tensor:
    """Latent kernels of one magnitude each. Mean magnitudes, and sums of them, have so few bits that they are exact.

    A network of binary activations is chaotic: one rounding may turn a sign around. These kernels are also equally far
    from several codewords, more often than not.
    """
    alpha = torch.randint(8, 16, (out_channels, 1)) / 512
    factors = torch.tensor([0.5, 1.5]).repeat(in_channels // 2)
    kernels = (alpha * factors)[:, :, None, None]
    return kernels * torch.randn(out_channels, in_channels, 3, 3).sign()


def random_patterns(tau: int) -> Tensor:
    """Distinct codewords, at magnitudes as training leaves them."""
    return codebook.vanilla(tau).flatten(1) * (torch.rand(2**tau, 9) * 2.9 + 0.01)


@pytest.fixture(scope="module")
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network((1, 2, 1, 1), 10, tau=5)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
                nn.init.normal_(norm.bias, std=0.1)
        with torch.no_grad():
            model(torch.randn(8, 3, 64, 64))
        return model.eval()


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def layer_state(latent: Tensor, patterns: Tensor, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}weight": latent, f"{prefix}binarize.patterns": patterns}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(content: Any, **options: Any) -> Path:
        path = tmp_path / "checkpoint.pth.tar"
        torch.save(content, path, **options)
        return path

    return save


# ---- layers ----


@pytest.mark.parametrize("tau", [1, 5, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_layer_computes_what_the_published_code_does(saved: Callable[..., Path], tau: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(tau)
    latent = torch.rand(24, 16, 3, 3, generator=generator) * 2 * scale - scale
    patterns = codebook.vanilla(tau, seed=1).flatten(1) * 0.3
    (layer,) = load_snn(saved(layer_state(latent, patterns, "a.binary_conv."))).layers
    published = BinaryConv(latent, patterns)
    assert layer.name == "a.binary_conv"
    assert (layer.ambiguous, layer.duplicates) == ((), ())
    assert layer.weight.tau == tau
    with torch.no_grad():
        assert torch.equal(layer.weight.decode().sign(), published.binarize(latent).sign())
        x = torch.randn(2, 16, 7, 7, generator=generator).sign()
        ours = SubbitConv2d.from_packed(layer.weight, padding=1, activation_bits=1)
        torch.testing.assert_close(ours(x), published(x), rtol=1e-5, atol=1e-5 * scale)


def test_many_kernels_are_assigned_in_the_float32_of_the_published_code(saved: Callable[..., Path]) -> None:
    """Near 0 its norms round: among so many kernels some get another codeword than exact arithmetic gives."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.rand(128, 256, 3, 3, generator=generator) * 1e-3
    patterns = codebook.vanilla(5, seed=1).flatten(1)
    (layer,) = load_snn(saved(layer_state(latent, patterns))).layers
    published = BinaryConv(latent, patterns).binarize(latent).detach()
    assert torch.equal(layer.weight.decode().sign(), published.sign())
    exact = codebook.decode(codebook.assign(latent, codebook.vanilla(5, seed=1)), codebook.vanilla(5, seed=1))
    differ = (exact != published.sign()).flatten(2).any(2)
    assert 0 < differ.sum() < 0.01 * differ.numel()


def test_the_first_of_equally_near_codewords(saved: Callable[..., Path]) -> None:
    words = torch.ones(4, 9)
    words[0, 0:3] = words[1, 0] = words[2, 8] = words[3, 4] = -1
    latent = torch.full((1, 2, 3, 3), 0.5)
    latent[0, 1, 0, 0] = -0.5
    (layer,) = load_snn(saved(layer_state(latent, words))).layers
    assert layer.weight.indices().tolist() == [[1, 1]]
    (layer,) = load_snn(saved(layer_state(latent, words.flip(0)))).layers
    assert layer.weight.indices().tolist() == [[0, 2]]


def test_ambiguous_signs_and_duplicates_are_listed(saved: Callable[..., Path]) -> None:
    patterns = torch.full((8, 9), 0.5)
    patterns[torch.arange(1, 6), torch.arange(5)] = -0.5
    patterns[6] = 2.0  # the same codeword as number 0
    patterns[7] = patterns[3] * 0.1  # the same as number 3
    patterns[1, 8], patterns[2, 0], patterns[2, 1], patterns[4, 4] = -9e-4, 0.0, -1e-3, 0.00099
    state = layer_state(torch.randn(8, 8, 3, 3), patterns, "layer1.0.binary_conv.")
    found = load_snn(saved(state | layer_state(torch.randn(8, 8, 3, 3), torch.randn(2, 9), "other.")))
    layer = found.layers[0]
    assert [(sign.codeword, sign.tap) for sign in layer.ambiguous] == [(1, 8), (2, 0), (4, 4)]
    assert [sign.value for sign in layer.ambiguous] == pytest.approx([-9e-4, 0, 0.00099])
    assert layer.weight.codebook().flatten(1)[1, 8] == -1
    assert layer.weight.codebook().flatten(1)[2, 0] == 1
    assert layer.duplicates == ((6, 0), (7, 3))
    assert not {6, 7} & set(layer.weight.indices().flatten().tolist())
    text = str(found)
    assert "3 ambiguous signs, 2 duplicate codewords" in text
    assert (
        "layer1.0.binary_conv: ambiguous codeword 1 tap 8 (-9.0e-04), codeword 2 tap 0 (+0.0e+00), codeword 4" in text
    )
    assert "2 of 2 layers converted." in text
    assert "other: ambiguous" not in text


def test_a_long_list_is_cut_in_the_text_only(saved: Callable[..., Path]) -> None:
    found = load_snn(saved(layer_state(torch.randn(8, 8, 3, 3), torch.zeros(2, 9))))
    assert len(found.layers[0].ambiguous) == 18
    assert found.layers[0].ambiguous[-1] == AmbiguousSign(1, 8, 0.0)
    assert found.report.notes[0].endswith("codeword 0 tap 7 (+0.0e+00) and 10 more.")


# ---- networks ----


def test_the_network_gives_the_same_logits(network: Network, saved: Callable[..., Path]) -> None:
    content = {"epoch": 3, "state_dict": nn.DataParallel(network).state_dict(), "best_top1_acc": torch.tensor(60.0)}
    model, report = snn_model(saved(content, _use_new_zipfile_serialization=False))  # as torch 1.4 writes
    assert not model.training
    assert sum(isinstance(module, SubbitConv2d) for module in model.modules()) == 5
    assert [(layer.shape, layer.tau) for layer in report.layers][-1] == ((512, 256, 3, 3), 5)
    x = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen: dict[str, list[Tensor]] = {}
    for name, module in [*network.named_modules(), *model.named_modules()]:
        if name.endswith("binary_conv"):
            module.register_forward_hook(lambda module, args, y, name=name: seen.setdefault(name, []).append(y))
    with torch.no_grad():
        expected, logits = network(x), model(x)
    assert len(seen) == 5
    for published, ours in seen.values():
        assert torch.equal(ours, published)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert len(set(expected.argmax(1).tolist())) > 1


def test_a_bare_state_dict_and_any_format(network: Network, saved: Callable[..., Path]) -> None:
    state = network.state_dict()
    first = snn_model(saved(state)).model.state_dict()
    for content in ({"state_dict": state}, {f"module.{key}": value for key, value in state.items()}):
        other = snn_model(saved(content)).model.state_dict()
        assert list(first) == list(other)
        assert all(torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(first["layer2.1.move1.bias"], state["layer2.1.move1.bias"][0])


def test_old_files_lack_the_counters_and_other_floats_become_float32(
    network: Network, saved: Callable[..., Path]
) -> None:
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    state["fc.weight"] = state["fc.weight"].double()
    model = snn_model(saved(state)).model
    assert model.fc.weight.dtype == torch.float32
    assert model.bn1.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.0.move1.bias"), "missing keys layer2.0.move1.bias"),
        (lambda state: state.pop("fc.bias"), "missing keys fc.bias"),
        (lambda state: state.update({"layer1.0.extra": torch.ones(1)}), "unexpected keys layer1.0.extra"),
        (lambda state: state.pop("layer3.0.binary_conv.binarize.patterns"), "missing binarize.patterns of layer3.0.b"),
        (lambda state: state.update(layer_state(torch.ones(8, 8, 3, 3), torch.randn(2, 9), "x.")), "patterns of x"),
        (
            lambda state: state.update({"layer1.0.binary_conv.weight": torch.ones(64, 32, 3, 3)}),
            "layer1.0.binary_conv.weight must have shape (64, 64, 3, 3), got (64, 32, 3, 3)",
        ),
        (
            lambda state: state.update({"layer1.0.move0.bias": torch.ones(1, 32, 1, 1)}),
            "layer1.0.move0.bias must be torch.float32 of shape (1, 64, 1, 1), got torch.float32 (1, 32, 1, 1)",
        ),
        (
            lambda state: state.update({"bn1.weight": torch.ones(64, dtype=torch.int64)}),
            "bn1.weight must be torch.float32 of shape (64,), got torch.int64 (64,)",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith("layer4")],
            "missing binarize.patterns of layer4.0.binary_conv",
        ),
    ],
)
def test_refuses_another_network_and_says_why(
    network: Network, saved: Callable[..., Path], change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    state = dict(network.state_dict())
    change(state)
    path = saved(state)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        snn_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- files ----


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_not_run(saved: Callable[..., Path], tmp_path: Path, new_format: bool) -> None:
    marker = tmp_path / "ran"
    state = layer_state(torch.randn(8, 8, 3, 3), torch.randn(2, 9))
    path = saved({"state_dict": state, "epoch": RunsCode(marker)}, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="must hold tensors and plain values alone") as caught:
        load_snn(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file would run code"


@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files(saved: Callable[..., Path], new_format: bool) -> None:
    state = layer_state(torch.randn(8, 8, 3, 3), torch.randn(2, 9))
    path = saved({"state_dict": state}, _use_new_zipfile_serialization=new_format)
    whole = path.read_bytes()
    assert load_snn(path).layers
    for size in (0, 1, 20, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"checkpoint\.pth\.tar") as caught:
            load_snn(path)
        assert "\n" not in str(caught.value)


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match="no such file: /nothing/here"):
        load_snn("/nothing/here")
    with tempfile.TemporaryDirectory() as folder, pytest.raises(FileNotFoundError, match="no such file"):
        load_snn(folder)


LATENT, PATTERNS = torch.ones(8, 8, 3, 3), torch.ones(4, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "must hold a state_dict, tensors by name, got list"),
        ({"state_dict": [1]}, "must hold a state_dict, tensors by name, got list"),
        ({3: torch.ones(1)}, "must hold a state_dict"),
        ({"format": "future", "version": 9}, "format must be a dense tensor of real numbers, got str"),
        ({"weight": LATENT}, "must hold binarize.patterns of some layer"),
        ({}, "must hold binarize.patterns of some layer"),
        ({"a.binarize.patterns": PATTERNS}, "a.weight is missing, which a.binarize.patterns is of"),
        (
            layer_state(LATENT, torch.ones(512, 9), "a."),
            "a.binarize.patterns must be floats (2^tau, 9) with tau 1 to 8",
        ),
        (layer_state(LATENT, torch.ones(3, 9)), "got torch.float32 (3, 9)"),
        (layer_state(LATENT, torch.ones(4, 3, 3)), "got torch.float32 (4, 3, 3)"),
        (layer_state(LATENT, PATTERNS.int()), "got torch.int32 (4, 9)"),
        (layer_state(torch.ones(8, 8, 1, 1), PATTERNS), "weight must be floats (C_out, C_in, 3, 3)"),
        (layer_state(torch.ones(0, 8, 3, 3), PATTERNS), "weight must be floats (C_out, C_in, 3, 3)"),
        (layer_state(LATENT * torch.nan, PATTERNS), "weight must be finite"),
        (layer_state(LATENT, PATTERNS * torch.inf), "binarize.patterns must be finite"),
        (layer_state(LATENT.to(torch.complex64), PATTERNS), "weight must be a dense tensor of real numbers"),
        (layer_state(LATENT.to_sparse(), PATTERNS), "weight must be a dense tensor of real numbers"),
        (
            layer_state(torch.ones(1).expand(10**6, 10**6, 3, 3), PATTERNS),
            "weight has 9000000000000 elements, more than the file holds",
        ),
        (layer_state(LATENT, PATTERNS) | {"module.weight": LATENT}, "the same key with and without 'module.'"),
    ],
)
def test_refuses_what_is_no_such_checkpoint(saved: Callable[..., Path], content: Any, message: str) -> None:
    path = saved(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_snn(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_package_has_it() -> None:
    import subbit_infer

    assert subbit_infer.checkpoint is checkpoint
