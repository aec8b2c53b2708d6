"""Runs: resumed at any step they have the same bits; checkpoints of something else are refused, and harm nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from image_files import write_idx
from networks import Net, assert_same_state, network, state_of
from torch.nn import functional as F

from subbit_infer.training import data
from subbit_infer.training.checkpoints import load_weights
from subbit_infer.training.recipes import PAPER, RECIPES, recipe
from subbit_infer.training.run import Run


@pytest.fixture
def images(tmp_path):
    write_idx(tmp_path)
    return data.load(tmp_path)


def make(
    images, *, seed: int = 0, epochs: int = 3, name: str = "paper", model: torch.nn.Module | None = None, **config
) -> Run:
    return Run("net", model or network(seed), images, recipe(name, tau=3, every=2, **config), epochs, 16, seed)


def make_float(images, *, seed: int = 0, **options) -> Run:
    return Run("net", network(seed), images, recipe("paper", method="float"), epochs=2, batch=16, seed=seed, **options)


def go(run: Run, until: int | None = None) -> None:
    for step in run.train():
        if step == until:
            break


@pytest.mark.parametrize("stop", [1, 4, 6])  # within an epoch, at its end, within the next
@pytest.mark.parametrize(("name", "method"), [("paper", "clustered"), ("paper", "snn"), ("two-stage", "snn")])
def test_a_resumed_run_has_the_same_bits(images, tmp_path, stop, name, method):
    path = tmp_path / "checkpoint.safetensors"
    whole = make(images, name=name, method=method)
    go(whole)
    first = make(images, name=name, method=method)
    go(first, stop)
    first.save(path)
    second = make(images, name=name, method=method)
    torch.manual_seed(123)  # nothing depends on torch's own generator
    second.resume(path)
    go(second)
    assert_same_state(state_of(whole.model), state_of(second.model))
    assert whole.log == second.log
    assert len(whole.log) == 3


def test_it_learns(images):
    run = make(images, epochs=15)
    run.crop = False
    go(run)
    assert run.log[-1]["test_accuracy"] > 80
    assert run.log[-1]["loss"] < run.log[0]["loss"]


def test_settings_of_another_run_are_refused(images, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    run = make(images)
    go(run, 1)
    run.save(path)
    for other, message in (
        (make(images, epochs=4), "must be of a run with epochs = 4, got 3"),
        (make(images, seed=1), "must be of a run with seed = 1, got 0"),
        (make(images, method="vanilla"), "must be of a run with recipe = .*vanilla"),
    ):
        before = state_of(other.model)
        with pytest.raises(ValueError, match=message):
            other.resume(path)
        assert_same_state(before, state_of(other.model))


def test_another_network_is_refused(images, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    run = make(images)
    go(run, 1)
    run.save(path)
    other = make(images, model=Net(channels=8))
    before = state_of(other.model)
    with pytest.raises(ValueError, match="must have shape"):
        other.resume(path)
    assert_same_state(before, state_of(other.model))


def test_files_that_are_no_checkpoints(images, tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        make(images).resume(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        make(images).resume(path)
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"must have format 'subbit_infer\.training'"):
        make(images).resume(path)
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"format": "subbit_infer.training", "version": "2"})
    with pytest.raises(ValueError, match=r"must have format version 1, got '2' \(version 2: made by a newer"):
        make(images).resume(path)


def test_a_failed_save_leaves_what_was_there(images, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    run = make(images)
    go(run, 1)
    run.save(path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="the disk is full"):
        run.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.glob(".*")) == []


def test_a_loss_that_is_not_finite(images):
    run = make(images)
    with torch.no_grad():
        run.model.fc.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"the loss must be finite, got .* at step 0"):
        go(run)


def test_a_float_run_resumes_with_the_same_bits(images, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    whole, first, second = make_float(images), make_float(images), make_float(images)
    go(whole)
    go(first, 3)
    first.save(path)
    second.resume(path)
    go(second)
    assert_same_state(state_of(whole.model), state_of(second.model))
    assert state_of(whole.model).keys() == state_of(network()).keys()


class NextBand(torch.nn.Module):
    """A teacher that is sure of the class after that of the bright band."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bands = torch.stack([part.mean((1, 2, 3)) for part in x.chunk(4, 2)], 1)
        return 10 * F.one_hot((bands.argmax(1) + 1) % 4, 10).float()


class TestTeachers:
    def taught(self, images, teacher: torch.nn.Module | None) -> Run:
        chosen = recipe("paper", tau=3, every=2)
        return Run("net", network(), images, chosen, epochs=20, batch=16, crop=False, teacher=teacher)

    def test_the_student_learns_what_it_answers_and_not_the_labels(self, images):
        run = self.taught(images, NextBand())
        go(run)
        assert run.log[-1]["loss"] < run.log[0]["loss"]
        run.model.eval()
        given = run.model(run.inputs(images.test)).argmax(1)
        assert (given == (images.test_labels + 1) % 4).float().mean() > 0.8
        assert run.log[-1]["test_accuracy"] < 20

    def test_another_one_is_refused_in_resuming(self, images, tmp_path):
        path = tmp_path / "checkpoint.safetensors"
        run = self.taught(images, network(1).eval())
        go(run, 1)
        run.save(path)
        self.taught(images, network(1).eval()).resume(path)
        for other in (network(2).eval(), None):
            with pytest.raises(ValueError, match="must be of a run with teacher = "):
                self.taught(images, other).resume(path)


class TestStarts:
    def test_the_weights_of_a_finished_run(self, images, tmp_path):
        path = tmp_path / "checkpoint.safetensors"
        binary = {"epochs": 1, "activation_bits": 1}
        for run in (make(images, **binary), make(images, method="float", **binary), make_float(images)):
            go(run)
            run.save(path)
            model = network(1)
            assert load_weights(path, model)["network"] == "net"
            state = state_of(run.model)
            latent = state.get("conv1.parametrizations.weight.original", state.get("conv1.weight"))
            assert torch.equal(model.conv1.weight, latent)
            assert torch.equal(model.norm1.running_var, state["norm1.running_var"])

    def test_what_is_refused(self, images, tmp_path):
        path = tmp_path / "checkpoint.safetensors"
        run = make(images, epochs=1)
        for message, model in (("must be of a finished run, got step 1 of 4", network(1)), ("must have shape", Net(8))):
            go(run, 1)
            run.save(path)
            before = state_of(model)
            with pytest.raises(ValueError, match=message):
                load_weights(path, model)
            assert_same_state(before, state_of(model))
            go(run)


class TestRecipes:
    def test_the_papers(self):
        made = PAPER.optimizer_for(network().parameters())
        group = made.param_groups[0]
        assert (type(made), group["lr"], group["momentum"], group["weight_decay"]) == (torch.optim.SGD, 0.1, 0.9, 1e-4)
        assert [round(PAPER.rate_at(f), 12) for f in (0, 0.5, 1)] == [0.1, 0.05, 0]

    def test_the_two_stage_one(self):
        two_stage = RECIPES["two-stage"]
        made = two_stage.optimizer_for(network().parameters())
        assert (type(made), made.param_groups[0]["lr"]) == (torch.optim.Adam, 1e-3)
        assert [two_stage.rate_at(f) for f in (0, 0.25, 1)] == [1e-3, 7.5e-4, 0]

    def test_of_float_networks(self):
        assert [recipe(name, method="float").weight_decay for name in ("paper", "two-stage")] == [1e-4, 1e-5]

    def test_unknown_ones(self):
        with pytest.raises(ValueError, match="recipe must be one of 'paper', 'two-stage', got 'magic'"):
            recipe("magic")
        with pytest.raises(ValueError, match="tau must be"):
            recipe("paper", tau=9)

    @pytest.mark.parametrize(
        ("changes", "message"), [({"epochs": 0}, "epochs"), ({"batch": 65}, "batch must be 1 to the 64")]
    )
    def test_sizes(self, images, changes, message):
        with pytest.raises(ValueError, match=message):
            replace(make(images), model=network(), **changes)
