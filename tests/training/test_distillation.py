"""Distillation's loss: what it is made of, its gradient, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from subbit_infer.training.distillation import distillation_loss


def logits(seed: int) -> torch.Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_it_is_the_divergence_and_the_teachers_entropy():
    student, teacher = logits(0), logits(1)
    target = teacher.softmax(1)
    divergence = F.kl_div(student.log_softmax(1), target, reduction="batchmean")
    entropy = -(target * target.log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher), divergence + entropy)


def test_only_the_student_learns():
    student, teacher = logits(0), logits(1)
    distillation_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 5)
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher"), [((5, 7), (5, 6)), ((5, 7), (7,)), ((7,), (7,)), ((5, 7, 2), (5, 7, 2))]
)
def test_shapes(student, teacher):
    with pytest.raises(ValueError, match=r"must be logits of one shape \(N, classes\), got"):
        distillation_loss(torch.zeros(student), torch.zeros(teacher))
