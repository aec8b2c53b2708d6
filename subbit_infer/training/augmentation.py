"""Augmentation as usual on CIFAR-10: images mirrored, and cropped within a margin of zeros, at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MARGIN = 4  # pixels that a crop may be off by


def augmented(images: Tensor, generator: torch.Generator, part: slice, *, crop: bool) -> Tensor:
    """A part of a batch, augmented. What is drawn is drawn for the whole batch, so that it is the same for any parts.

    Args:
        images: the batch, (N, C, H, W).
        generator: of the draws.
        part: of the batch.
        crop: whether images are also cropped.

    Returns:
        the part, (n, C, H, W).
    """
    count, _, height, width = images.shape
    mirrored = (torch.rand(count, generator=generator) < 0.5)[part]
    corners = torch.randint(0, 2 * _MARGIN + 1, (2, count), generator=generator) if crop else None
    images = images[part]
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if corners is None:
        return images
    top, left = corners[:, part]
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    every = torch.arange(len(images))[:, None, None]
    padded = F.pad(images, (_MARGIN,) * 4).permute(0, 2, 3, 1)
    return padded[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
