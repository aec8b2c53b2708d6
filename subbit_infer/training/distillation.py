"""Distillation: a network learns the distribution that another one, its teacher, gives."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The cross-entropy of the student's distribution with the teacher's, at temperature 1.

    It is their Kullback-Leibler divergence plus the entropy of the teacher's, which is constant. Labels are not used.

    Args:
        student: logits (N, classes).
        teacher: logits (N, classes); no gradient flows into them.

    Returns:
        the mean over the batch, a scalar.

    Raises:
        ValueError: the logits are not of one shape (N, classes).

    Source: ``DistributionLoss`` of ReActNet's code (Liu et al., ECCV 2020), by which both stages of the published
    training code of sub-bit networks (github.com/yikaiw/SNN) learn.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            "student and teacher must be logits of one shape (N, classes), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return F.cross_entropy(student, teacher.detach().softmax(1))
