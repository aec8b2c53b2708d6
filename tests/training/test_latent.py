"""What a latent weight stands for, its gradient, and the codebooks of every method."""

from __future__ import annotations

import pytest
import torch
from networks import network, optimizer_of, train
from torch import nn

from subbit_infer import training
from subbit_infer.core import codebook
from subbit_infer.training import codebooks
from subbit_infer.training.latent import SubbitWeight
from subbit_infer.training.preparation import latent_weight
from subbit_infer.training.recipes import recipe

BINARY = [m for m in training.METHODS if m != "float"]
SUBBIT = [m for m in BINARY if m != "1-bit"]


def only_layer(layer: nn.Module, config: training.Config) -> tuple[nn.Module, SubbitWeight]:
    model = training.prepare(nn.Sequential(layer), config, ["0"])
    ((_, layer, weight),) = training.prepared_layers(model)
    return layer, weight


def standardized(latent: torch.Tensor) -> torch.Tensor:
    flat = latent.detach().double().flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    return flat.view_as(latent)


@pytest.mark.parametrize("method", BINARY)
@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(6, 10, 3), lambda: nn.Conv2d(32, 10, 1, groups=2), lambda: nn.Linear(32, 10)]
)
def test_a_weight_is_the_nearest_codewords_times_a_power_of_two(method, make):
    torch.manual_seed(0)
    layer, weight = only_layer(make(), training.Config(method, tau=3))
    latent = standardized(latent_weight(layer))
    scale = 2 ** torch.round(torch.log2(latent.abs().flatten(1).mean(1))).view(-1, *(1,) * (latent.dim() - 1))
    if method == "1-bit":
        expected = torch.where(latent >= 0, 1.0, -1.0)
    else:
        units = latent.reshape(-1, weight.codebook.shape[1])
        assert len(weight.codebook) == 8
        distances = (units[:, None] - weight.codebook.double()).square().sum(2)
        expected = weight.codebook[distances.argmin(1)].view_as(latent)
    assert torch.equal(layer.weight.detach(), (scale * expected).float())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", ["1-bit", "vanilla"])
def test_the_gradient_is_the_error_decay_estimators(method, fraction):
    torch.manual_seed(0)
    layer, _ = only_layer(nn.Conv2d(4, 5, 3, bias=False), training.Config(method, tau=3))
    training.set_progress(layer, fraction)
    latent = latent_weight(layer)
    given = torch.randn_like(latent)
    layer.weight.backward(given)
    # By hand: t and k of IR-Net, through the scale, which has no gradient, and through standardizing.
    t = 1e-2 * (10 / 1e-2) ** fraction
    k = max(1 / t, 1)
    again = latent.detach().double().requires_grad_()
    flat = again.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    slope = k * t * (1 - torch.tanh(t * flat.detach()) ** 2)
    scale = 2 ** torch.round(torch.log2(flat.detach().abs().mean(1, keepdim=True)))
    (flat * (slope * scale * given.double().flatten(1))).sum().backward()
    torch.testing.assert_close(latent.grad, again.grad.float(), rtol=1e-5, atol=1e-5)


def test_clustered_weights_have_a_straight_gradient():
    config = training.Config("clustered", tau=3)
    layer, weight = only_layer(nn.Linear(16, 4, bias=False), config)
    weight.set_progress(1.0)
    given = torch.randn(4, 16)
    layer.weight.backward(given)
    again = latent_weight(layer).detach().clone().requires_grad_()
    standard = weight.standardized(again)
    (standard * weight.scale(standard) * given).sum().backward()
    torch.testing.assert_close(latent_weight(layer).grad, again.grad)
    assert (
        training.Config("clustered", estimator="clipped", weight_estimator="clipped").estimator_of_weights == "clipped"
    )
    assert training.Config("vanilla").estimator_of_weights == "ede"


def test_the_clipped_estimator():
    config = training.Config("1-bit", estimator="clipped", standardize=False, power_of_two_scale=False)
    layer, _ = only_layer(nn.Linear(8, 1, bias=False), config)
    values = torch.tensor([[-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0]])
    latent_weight(layer).data.copy_(values)
    layer.weight.sum().backward()
    inside = (values.abs() <= 1).float()
    assert torch.equal(latent_weight(layer).grad, inside * values.abs().mean())


class TestCodebooks:
    @pytest.mark.parametrize("method", SUBBIT)
    @pytest.mark.parametrize("tau", [1, 3, 8])
    def test_codewords_stay_distinct_and_of_plus_and_minus_one(self, method, tau):
        model = training.prepare(network(), training.Config(method, tau=tau, every=2, until=1.0, pattern_scale=1e-3))
        train(model, optimizer_of(model), 0, 6)
        for _, _, weight in training.prepared_layers(model):
            assert torch.equal(weight.codebook.abs(), torch.ones_like(weight.codebook))
            assert len(weight.codebook.unique(dim=0)) == 2**tau

    @pytest.mark.parametrize(("method", "changes"), [("vanilla", False), ("baseline-a", False), ("clustered", True)])
    def test_which_change(self, method, changes):
        model = training.prepare(network(), training.Config(method, tau=6, every=1))
        before = [weight.codebook.clone() for _, _, weight in training.prepared_layers(model)]
        train(model, optimizer_of(model), 0, 3)
        after = [weight.codebook for _, _, weight in training.prepared_layers(model)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) != changes

    def test_layers_have_codebooks_of_their_own(self):
        model = training.prepare(network(), training.Config("vanilla", tau=3))
        first, second, *_ = (weight.codebook for _, _, weight in training.prepared_layers(model))
        assert not torch.equal(first, second)

    def test_baseline_a_is_at_equal_intervals(self):
        _, weight = only_layer(nn.Conv2d(4, 5, 3), training.Config("baseline-a", tau=3))
        assert codebook.numbers(weight.codebook.view(8, 1, 3, 3)).tolist() == list(range(0, 512, 64))

    @pytest.mark.parametrize(("method", "every"), [("baseline-b", 1), ("baseline-b10", 10)])
    def test_baseline_b_counts_the_units_of_the_1_bit_network(self, method, every):
        model = training.prepare(network(), training.Config(method, tau=3))
        optimizer = optimizer_of(model)
        for step in range(0, 2 * every, every):
            train(model, optimizer, step, step + every)
            for _, layer, weight in training.prepared_layers(model):
                numbers = codebooks.numbers_of(weight.units(weight.standardized(latent_weight(layer))))
                counts = torch.bincount(numbers, minlength=2 ** weight.codebook.shape[1])
                chosen = counts[codebooks.numbers_of(weight.codebook)]
                assert int(chosen.sum()) == int(counts.sort(descending=True).values[:8].sum())

    @pytest.mark.parametrize("taps", [8, 9])
    @pytest.mark.parametrize("tau", range(1, 9))
    def test_pairs_are_far_from_each_other(self, tau, taps):
        codewords = codebooks.spread_pairs(tau, taps, seed=0)
        half = 2**tau // 2
        assert codewords.shape == (2**tau, taps)
        assert torch.equal(codewords[half:], -codewords[:half])
        assert len(codewords.unique(dim=0)) == 2**tau
        products = (codewords[:half] @ codewords[:half].t()).abs().fill_diagonal_(0)
        random = codebook.vanilla(tau, (1, 3, 3) if taps == 9 else (8, 1, 1), seed=0).flatten(1)
        assert products.max() <= (random @ random.t()).fill_diagonal_(0).max()

    def test_clustered_codewords_keep_their_negatives(self):
        model = training.prepare(network(), training.Config("clustered", tau=4, every=1))
        train(model, optimizer_of(model), 0, 5)
        for _, _, weight in training.prepared_layers(model):
            assert torch.equal(weight.codebook[8:], -weight.codebook[:8])

    def test_clustering_makes_weights_nearer(self):
        torch.manual_seed(0)
        layer, weight = only_layer(nn.Conv2d(32, 32, 3), training.Config("clustered", tau=4, every=1))
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        model = nn.Sequential(layer)
        weight.codebook.copy_(weight.codebook[:1].expand_as(weight.codebook)).view(2, 8, 9)[1].neg_()  # the worst start

        def distance() -> float:
            units = weight.units(weight.standardized(latent_weight(layer)))
            return float((units - weight.codebook[weight.nearest(units)]).detach().square().sum())

        distances = [distance()]
        for _ in range(5):
            training.refine_(model, optimizer)
            distances.append(distance())
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 0.7 * distances[0]

    def test_clustering_ends(self):
        model = training.prepare(network(), training.Config("clustered", tau=3, every=1, until=0.5))
        optimizer = optimizer_of(model)
        train(model, optimizer, 0, 10)
        before = [weight.codebook.clone() for _, _, weight in training.prepared_layers(model)]
        train(model, optimizer, 10, 14)
        after = [weight.codebook for _, _, weight in training.prepared_layers(model)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_dead_and_equal_codewords_are_restarted(self):
        layer, weight = only_layer(nn.Conv2d(8, 8, 3), training.Config("clustered", tau=2, every=1))
        weight.codebook.fill_(1.0).view(2, 2, 9)[1].neg_()  # equal pairs: one is dead
        training.refine_(nn.Sequential(layer), torch.optim.SGD(layer.parameters(), 0.1))
        assert len(weight.codebook.unique(dim=0)) == 4


class TestPublishedCode:
    """The gradients of the published training code (github.com/yikaiw/SNN, step 2), written out again."""

    def published(self, latent, patterns, signs, x, *, refines: bool):
        latent, patterns = latent.detach().requires_grad_(), patterns.detach().requires_grad_()
        scale = latent.detach().abs().mean((1, 2, 3), keepdim=True)
        flat = latent.detach().view(-1, 9)
        nearest = (flat[:, None] - signs).norm(dim=2).argmin(1)
        clipped = latent.clamp(-1, 1)
        binary = signs[nearest].view_as(latent) + clipped - clipped.detach()
        if refines:
            learnt = patterns[nearest].view_as(latent)
            binary = binary + learnt - learnt.detach()
        polynomial = torch.where(x < 0, x * x + 2 * x, 2 * x - x * x)
        soft = torch.where(x.detach().abs() < 1, polynomial, x.detach().sign())
        y = nn.functional.conv2d(x.detach().sign() + soft - soft.detach(), scale * binary, padding=1)
        y.square().sum().backward()
        return latent.grad, patterns.grad

    @pytest.mark.parametrize("refines", [False, True])
    @pytest.mark.parametrize("tau", [3, 5])
    def test_gradients_of_weights_patterns_and_activations(self, refines, tau):
        torch.manual_seed(0)
        config = recipe("two-stage", method="snn", tau=tau, activation_bits=1).config
        model = training.prepare(nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False)), config, ["0"])
        ((_, layer, weight),) = training.prepared_layers(model)
        latent_weight(layer).data.mul_(5)  # some beyond 1
        weight.count_steps(24 if refines else 3)
        x = 1.5 * torch.randn(2, 8, 6, 6)
        x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        model(x_ours).square().sum().backward()
        signs = weight.codebook
        theirs, of_patterns = self.published(latent_weight(layer), weight.patterns, signs, x_theirs, refines=refines)
        torch.testing.assert_close(latent_weight(layer).grad, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
        torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=1e-5, atol=1e-5 * x_theirs.grad.abs().max().item())
        if refines:
            bound = 1e-5 * of_patterns.abs().max().item()
            torch.testing.assert_close(weight.pattern_grad, of_patterns, rtol=1e-5, atol=bound)
        else:
            assert of_patterns is None
            assert weight.pattern_grad is None


class TestRefinement:
    """Codewords as signs of patterns, which learn (paper: SNN)."""

    def make(self, **changes) -> tuple[nn.Module, SubbitWeight]:
        torch.manual_seed(0)
        return only_layer(nn.Conv2d(6, 10, 3, bias=False), training.Config("snn", tau=2, every=3, **changes))

    def test_patterns_get_the_gradient_of_their_units_every_third_step(self):
        layer, weight = self.make()
        model, optimizer = nn.Sequential(layer), torch.optim.SGD(layer.parameters(), 0.1)
        for step in range(6):
            x = torch.randn(2, 6, 5, 5)
            plain = layer.weight.detach().requires_grad_()
            nn.functional.conv2d(x, plain).square().sum().backward()
            scale = weight.scale(weight.standardized(latent_weight(layer)))
            units = weight.units(plain.grad * scale)
            indices = weight.nearest(weight.units(weight.standardized(latent_weight(layer))))
            expected = torch.zeros_like(weight.codebook).index_add_(0, indices, units)
            before = weight.patterns.clone()
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 3 != 2:
                assert weight.pattern_grad is None
                training.refine_(model, optimizer)
                assert torch.equal(weight.patterns, before)
                continue
            torch.testing.assert_close(weight.pattern_grad, expected, rtol=1e-4, atol=1e-3)
            training.refine_(model, optimizer)
            torch.testing.assert_close(weight.patterns, (before - 0.1 * expected).clamp(-3, 3), rtol=1e-4, atol=1e-3)

    def test_a_sign_turns_only_where_the_pattern_is_away_from_zero(self):
        layer, weight = self.make()
        weight.codebook.copy_(
            torch.tensor([[1.0], [1.0], [-1.0], [1.0]]).expand(4, 9) * codebooks.codewords_of(torch.arange(4), 9)
        )
        before = weight.codebook.clone()
        weight.patterns.copy_(before)
        weight.patterns[0, 0] = -5e-4 * before[0, 0]  # on the other side, too near to zero
        weight.patterns[1, 5] = -2e-3 * before[1, 5]
        weight.count_steps(2)
        training.refine_(nn.Sequential(layer), torch.optim.SGD(layer.parameters(), 0.1))
        changed = (weight.codebook != before).nonzero().tolist()
        assert changed == [[1, 5]]

    def test_duplicates_are_drawn_anew_the_same_way_everywhere(self):
        found = []
        for _ in range(2):
            layer, weight = self.make()
            weight.codebook[1:] = weight.codebook[0]
            weight.patterns.copy_(weight.codebook)
            weight.count_steps(2)
            training.refine_(nn.Sequential(layer), torch.optim.SGD(layer.parameters(), 0.1))
            assert len(weight.codebook.unique(dim=0)) == 4
            assert torch.equal(weight.patterns.sign(), weight.codebook)
            found.append(weight.codebook)
        assert torch.equal(*found)
