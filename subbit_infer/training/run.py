"""A run of training on images in memory, for ``subbit train``: steps, evaluation, and resumption with the same bits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbit_infer.training import ranks
from subbit_infer.training.augmentation import augmented
from subbit_infer.training.checkpoints import fingerprint, load_checkpoint, read_run, save_checkpoint
from subbit_infer.training.data import Images
from subbit_infer.training.distillation import distillation_loss
from subbit_infer.training.preparation import prepare, refine_, set_progress
from subbit_infer.training.recipes import Recipe

_TEST_BATCH = 1000
_CPU = torch.device("cpu")


@dataclass
class Run:
    """Training of one network, by this process or together with the others of ``torch.distributed``.

    On several ranks each takes its share of the batches that one process would have: the result is the same up to
    rounding, but for BatchNorm (see :func:`subbit_infer.training.ranks.mean_statistics_`). All ranks have the same
    state after every step, and have to make the same calls, but for :meth:`save`.

    Args:
        network: what resumes only a run of the same.
        model: the network, with plain layers; they are prepared here.
        images: what it learns.
        recipe: optimizer, schedule and the configuration of sub-bit layers.
        epochs: passes over the training images.
        batch: images per step, over all ranks.
        seed: of the order of images and of their augmentation.
        crop: whether images are cropped at random within a margin of 4 zeros; all are mirrored at random.
        device: where the model is trained; on the CPU it is laid out as channels_last, which is faster there.
        teacher: a network for the same images, in evaluation mode, whose distribution is learnt in the labels' place.

    Attributes:
        mean: of each channel of the training images, in [0, 1], (1, C, 1, 1).
        deviation: likewise.
        step: of the optimizer, that comes next.
        log: a row per finished epoch: epoch, rate, loss, train_accuracy and test_accuracy in percent.

    Raises:
        ValueError: epochs or batch below 1, a batch larger than the data set, or one that does not divide by the ranks.
    """

    network: str
    model: nn.Module
    images: Images
    recipe: Recipe
    epochs: int
    batch: int
    seed: int = 0
    crop: bool = True
    device: torch.device = _CPU
    teacher: nn.Module | None = None
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 1 <= self.batch <= len(self.images.train):
            raise ValueError(f"batch must be 1 to the {len(self.images.train)} training images, got {self.batch}")
        if self.batch % ranks.count():
            raise ValueError(f"batch must divide by the {ranks.count()} ranks, got {self.batch}")
        self._is_plain = self.recipe.config.method == "float" and self.recipe.config.activation_bits == 32
        if not self._is_plain:
            prepare(self.model, self.recipe.config)
        self._teacher_digest = None if self.teacher is None else fingerprint(self.teacher)
        self._layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        for network in (self.model, self.teacher):
            if network is not None:
                network.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]
        self._wrapped = ranks.wrapped(self.model)
        self.optimizer = self.recipe.optimizer_for(self.model.parameters())
        self._order = torch.Generator().manual_seed(self.seed)
        self._augment = torch.Generator().manual_seed(self.seed + 1)
        pixels = self.images.train.float().div_(255).transpose(0, 1).flatten(1)
        self.mean = pixels.mean(1).view(1, -1, 1, 1).to(self.device)
        self.deviation = pixels.std(1).clamp_min(1e-3).view(1, -1, 1, 1).to(self.device)
        self._losses: list[float] = []
        self._right = 0

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return len(self.images.train) // self.batch

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch

    def inputs(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) as the network takes them: less the training images' mean, over their deviation."""
        images = images.to(self.device, memory_format=self._layout)
        return (images.float().div_(255) - self.mean) / self.deviation

    def train(self) -> Iterator[int]:
        """Makes the steps that are left; gives the number of each when it is done."""
        while self.step < self.steps:
            first = self.step % self.steps_per_epoch
            before = self._order.get_state()
            order = torch.randperm(len(self.images.train), generator=self._order)
            after = self._order.get_state()
            self._order.set_state(before)  # until the epoch is done: what resumes within it draws the same order
            for number in range(first, self.steps_per_epoch):
                self._make_step(order[number * self.batch : (number + 1) * self.batch])
                if number == self.steps_per_epoch - 1:
                    self._order.set_state(after)
                    self._end_epoch()
                yield self.step

    def _make_step(self, chosen: Tensor) -> None:
        self.model.train()
        fraction = self.step / self.steps
        if not self._is_plain:
            set_progress(self.model, fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(fraction)
        part = ranks.share(self.batch)
        x = self.inputs(augmented(self.images.train[chosen], self._augment, part, crop=self.crop))
        labels = self.images.train_labels[chosen[part]].to(self.device)
        logits = self._wrapped(x)
        loss = self._loss(x, logits, labels)
        right = (logits.argmax(1) == labels).sum()
        # Of all ranks, so that none goes on where another one's loss is not finite, and waits for it.
        loss_sum, rights = ranks.sum_(torch.stack([loss.detach().double(), right.double()])).tolist()
        if not math.isfinite(loss_sum):
            raise ValueError(f"the loss must be finite, got {loss_sum} at step {self.step}: the training diverged")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if not self._is_plain:
            refine_(self.model, self.optimizer)
        ranks.mean_statistics_(self.model)
        self._losses.append(loss_sum / ranks.count())
        self._right += int(rights)
        self.step += 1

    def _loss(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if self.teacher is None:
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            taught = self.teacher(x)
        return distillation_loss(logits, taught)

    def _end_epoch(self) -> None:
        row = {
            "epoch": len(self.log) + 1,
            "rate": self.optimizer.param_groups[0]["lr"],
            "loss": sum(self._losses) / len(self._losses),
            "train_accuracy": 100 * self._right / (len(self._losses) * self.batch),
            "test_accuracy": self.accuracy(),
        }
        self.log.append(row)
        self._losses, self._right = [], 0

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of test images that are classified right, in percent; each rank looks at some of them."""
        self.model.eval()
        mine = slice(ranks.rank(), None, ranks.count())
        images, labels = self.images.test[mine], self.images.test_labels[mine]
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for some, true in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
            right += (self.model(self.inputs(some)).argmax(1) == true.to(self.device)).sum()
        return 100 * int(ranks.sum_(right)) / len(self.images.test)

    def settings(self) -> dict[str, Any]:
        """What the run was asked for."""
        asked = {"network": self.network, "epochs": self.epochs, "batch": self.batch, "seed": self.seed}
        asked |= {"crop": self.crop, "images": len(self.images.train), "recipe": asdict(self.recipe)}
        return asked | {"ranks": ranks.count(), "teacher": self._teacher_digest}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint; see :func:`subbit_infer.training.checkpoints.save_checkpoint`."""
        run = self.settings() | {"steps": self.steps, "step": self.step}
        run |= {"log": self.log, "losses": self._losses, "right": self._right}
        save_checkpoint(path, self.model, self.optimizer, self._generators(), run)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint of the same run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or one of a run that was asked for something else.
        """
        run = read_run(path)
        for name, value in self.settings().items():
            if run.get(name) != value:
                raise ValueError(f"{path} must be of a run with {name} = {value!r}, got {run.get(name)!r}")
        load_checkpoint(path, self.model, self.optimizer, self._generators())
        self.step, self.log = run["step"], run["log"]
        self._losses, self._right = run["losses"], run["right"]

    def _generators(self) -> dict[str, torch.Generator]:
        return {"order": self._order, "augment": self._augment}
