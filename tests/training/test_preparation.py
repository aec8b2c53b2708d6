"""Preparing, training around one's own loop, finishing: what changes, what does not, and what is refused."""

from __future__ import annotations

import io

import pytest
import torch
from networks import assert_same_state, batch, network, optimizer_of, state_of, train
from torch import nn
from torch.nn import functional as F

from subbit_infer import convert, models, training

METHODS = [method for method in training.METHODS if method != "float"]


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_finishes_without_loss(method, activation_bits):
    model = training.prepare(network(), training.Config(method, tau=4, activation_bits=activation_bits, every=3))
    optimizer = optimizer_of(model)
    x, y = batch(0, 32)
    losses = []
    for step in range(30):
        training.set_progress(model, step / 30)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.refine_(model, optimizer)
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(training.finish(model)(x), expected)
    assert list(training.prepared_layers(model)) == []
    if method != "1-bit":
        converted, report = convert(model, x[:4], verify=True)
        assert [layer.name for layer in report.converted] == ["conv1", "conv2", "conv3"]
        assert {layer.activation_bits for layer in report.converted} == {activation_bits}
        with torch.no_grad():
            torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-4)


def test_binary_activations_alone_are_a_first_stage():
    model = training.prepare(network(), training.Config("float", activation_bits=1))
    train(model, optimizer_of(model), 0, 3)
    weights = model.conv1.weight.detach().clone()
    x, _ = batch(0)
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(training.finish(model)(x), expected)
    assert torch.equal(model.conv1.weight, weights)
    assert len(weights.abs().unique()) > 100
    train(
        training.prepare(model.train(), training.Config("vanilla", tau=3, activation_bits=1)), optimizer_of(model), 0, 1
    )


def test_a_float_network_is_not_prepared():
    with pytest.raises(ValueError, match="needs no preparation"):
        training.prepare(network(), training.Config("float"))


def test_the_optimizer_may_be_older_than_the_preparation():
    model = network()
    optimizer = optimizer_of(model)
    training.prepare(model, training.Config("clustered", tau=3, activation_bits=1))
    before = model.conv1.parametrizations.weight.original.clone()
    train(model, optimizer, 0, 1)
    assert not torch.equal(model.conv1.parametrizations.weight.original, before)


@pytest.mark.parametrize(
    ("method", "given", "used"), [("clustered", None, 0.1), ("vanilla", None, 1), ("snn", 0.5, 0.5)]
)
def test_latent_weights_are_made_smaller_and_stand_for_the_same(method, given, used):
    plain = network()
    model = training.prepare(network(), training.Config(method, tau=3, latent_scale=given))
    whole = training.prepare(network(), training.Config(method, tau=3, latent_scale=1))
    assert torch.equal(model.conv1.parametrizations.weight.original, plain.conv1.weight * used)
    assert torch.equal(model.conv1.weight, whole.conv1.weight)


def test_latent_weights_that_are_not_standardized_keep_their_size():
    config = training.Config("clustered", tau=3, standardize=False, estimator="clipped")
    model = training.prepare(network(), config)
    assert torch.equal(model.conv1.parametrizations.weight.original, network().conv1.weight)


def test_the_body_is_all_but_the_ends():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 5), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 8, 1),
        nn.Linear(8, 10),
    )  # fmt: skip
    assert training.body_of(model) == ["1", "3"]


class TestSteps:
    """Only steps of the optimizer count."""

    @pytest.mark.parametrize("method", METHODS)
    def test_evaluation_changes_nothing(self, method):
        model = training.prepare(network(), training.Config(method, tau=3, every=2))
        optimizer = optimizer_of(model)
        train(model, optimizer, 0, 3)
        model.eval()
        before = state_of(model)
        model(batch(5)[0])
        with torch.no_grad():
            model.train()
            model.stem(batch(5)[0])
        assert_same_state(before, state_of(model))

    @pytest.mark.parametrize("method", ["snn", "clustered"])
    def test_accumulated_gradients_are_one_step(self, method):
        finals = []
        for parts in (1, 4):
            model = training.prepare(network(), training.Config(method, tau=3, every=2))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):  # whose batches differ
                    module.eval()
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            for step in range(4):
                x, y = batch(step)
                optimizer.zero_grad()
                for part in range(parts):
                    rows = slice(part * 8 // parts, (part + 1) * 8 // parts)
                    (F.cross_entropy(model(x[rows]), y[rows]) / parts).backward()
                optimizer.step()
                training.refine_(model, optimizer)
            finals.append([(w.steps, w.codebook) for _, _, w in training.prepared_layers(model)])
        for (steps, codebook), (others, other) in zip(*finals, strict=True):
            assert steps == others == 4
            assert torch.equal(codebook, other)

    def test_gradients_set_to_zero_or_to_none(self):
        states = []
        for to_none in (True, False):
            model = training.prepare(network(), training.Config("snn", tau=3, every=2))
            optimizer = optimizer_of(model)
            for step in range(6):
                x, y = batch(step)
                optimizer.zero_grad(set_to_none=to_none)
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                training.refine_(model, optimizer)
            states.append(state_of(model))
        assert_same_state(*states)

    def test_checkpointed_activations(self):
        states = []
        for checkpointed in (False, True):
            model = training.prepare(network(), training.Config("snn", tau=3, every=2)).eval()
            for _, layer, weight in training.prepared_layers(model):
                layer.train()
                weight.train()
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
            for step in range(4):
                x, y = batch(step)
                x.requires_grad_()
                y_hat = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
                optimizer.zero_grad()
                F.cross_entropy(y_hat, y).backward()
                optimizer.step()
                training.refine_(model, optimizer)
            states.append(state_of(model))
        assert_same_state(*states)

    @pytest.mark.parametrize(("method", "graphs"), [("snn", 2), ("clustered", 1)])
    def test_a_compiled_step_is_one_graph_and_one_more_where_patterns_collect(self, method, graphs):
        torch.compiler.reset()
        states = []
        for compiled in (False, True):
            config = training.Config(method, tau=3, every=3, activation_bits=1, pattern_scale=1e-2)
            model = training.prepare(network(), config)
            run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
            optimizer = optimizer_of(model)
            torch._dynamo.utils.counters.clear()
            for step in range(8):
                training.set_progress(model, step / 8)
                x, y = batch(step)
                optimizer.zero_grad()
                F.cross_entropy(run(x), y).backward()
                optimizer.step()
                training.refine_(model, optimizer)
            states.append(state_of(model))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        assert_same_state(*states)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_resumed_run_has_the_same_bits(self, method):
        config = training.Config(method, tau=3, every=2)
        model = training.prepare(network(), config)
        optimizer = optimizer_of(model)
        train(model, optimizer, 0, 5)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        train(model, optimizer, 5, 10)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = training.prepare(network(seed=1), config)
        other.load_state_dict(saved["model"])
        resumed = optimizer_of(other)
        resumed.load_state_dict(saved["optimizer"])
        train(other, resumed, 5, 10)
        assert_same_state(state_of(model), state_of(other))

    def test_autocast_does_not_reach_the_codewords(self):
        model = training.prepare(network(), training.Config("clustered", tau=3))
        with torch.no_grad():
            plain = model.conv1.weight
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(model.conv1.weight, plain)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"method": "magic"}, "method must be one of 'float', .*, got 'magic'"),
            ({"tau": 0}, "tau must be an int from 1 to 8, got 0"),
            ({"tau": 9}, "tau must be an int from 1 to 8, got 9"),
            ({"tau": 2.0}, "tau must be an int"),
            ({"activation_bits": 8}, "activation_bits must be one of 1, 32, got 8"),
            ({"estimator": "none"}, "estimator must be one of"),
            ({"weight_estimator": "none"}, "weight_estimator must be one of None, 'ede'"),
            ({"t_min": 0.0}, "t_min must be above 0"),
            ({"every": 0}, "every must be an int of at least 1, got 0"),
            ({"latent_scale": 0.0}, "latent_scale must be above 0 and finite, got 0.0"),
            ({"refine_rate": float("nan")}, "refine_rate must be above 0 and finite, got nan"),
            ({"pattern_scale": float("inf")}, "pattern_scale must be above 0 and finite, got inf"),
            ({"until": 1.5}, r"until must be in \[0, 1\], got 1.5"),
        ],
    )
    def test_configurations(self, changes, message):
        with pytest.raises(ValueError, match=message):
            training.Config(**changes)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (
                nn.Conv2d(8, 8, 5),
                r"the layer '1' cannot be sub-bit: kernel_size must be \(3, 3\) or \(1, 1\), got \(5, 5\)",
            ),
            (nn.Conv2d(12, 8, 1), "input channels of a group must be divisible by 8, got 12"),
            (nn.Linear(12, 8), "in_features must be divisible by 8, got 12"),
            (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padding_mode must be 'zeros', got 'reflect'"),
            (nn.BatchNorm2d(8), "it must be an nn.Conv2d or nn.Linear, got BatchNorm2d"),
        ],
    )
    def test_layers(self, layer, message):
        model = nn.Sequential(nn.Conv2d(8, 8, 3), layer)
        with pytest.raises(ValueError, match=message):
            training.prepare(model, layers=["0", "1"])
        assert list(training.prepared_layers(model)) == []

    def test_layers_that_take_the_sign_themselves(self):
        model = models.resnet20(activation_bits=1, in_channels=1)
        with pytest.raises(ValueError, match=r"it takes the sign of its input, .*: activation_bits must be 1, got 32"):
            training.prepare(model)
        training.prepare(model, training.Config(activation_bits=1))
        F.cross_entropy(model.train()(batch(0)[0]), batch(0)[1]).backward()
        assert float(model.conv1.weight.grad.abs().sum()) > 0  # through eighteen signs

    def test_layers_of_other_classes(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(nn.Conv2d(8, 8, 3), Doubled(8, 8, 3))
        with pytest.raises(ValueError, match="activation_bits is 1, and Doubled has a forward method of its own"):
            training.prepare(model, training.Config(activation_bits=1))
        assert len(list(training.prepared_layers(training.prepare(model)))) == 1

    def test_names_and_order(self):
        model = network()
        with pytest.raises(KeyError, match="got 'conv9'"):
            training.prepare(model, layers=["conv1", "conv9"])
        with pytest.raises(ValueError, match="at least one layer"):
            training.prepare(nn.Sequential(nn.Linear(8, 8)))
        for call in (
            training.finish,
            lambda m: training.set_progress(m, 0.5),
            lambda m: training.refine_(m, optimizer_of(m)),
        ):
            with pytest.raises(ValueError, match="call prepare first"):
                call(model)
        training.prepare(model)
        with pytest.raises(ValueError, match="parametrized yet"):
            training.prepare(model)
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 1.1"):
            training.set_progress(model, 1.1)
        with pytest.raises(ValueError, match="optimizer must hold the latent weight of 'conv1'"):
            training.refine_(model, torch.optim.SGD(network().parameters(), 0.1))

    def test_a_training_that_diverged(self):
        model = training.prepare(network(), training.Config(every=2))
        with torch.no_grad():
            model.conv2.parametrizations.weight.original[0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="that of 'conv2' is not"):
            training.finish(model)
        assert len(list(training.prepared_layers(model))) == 3
        optimizer = optimizer_of(model)
        training.refine_(model, optimizer)
        with pytest.raises(ValueError, match="one is not after step 2: the training diverged"):
            training.refine_(model, optimizer)
