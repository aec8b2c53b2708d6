"""The photographs that the demo shows its networks: scikit-learn's two, which need no download."""

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

SIDE = 224
CHANNEL_MEANS, CHANNEL_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def photographs() -> Tensor:
    """Scikit-learn's two sample photographs and their mirror images, 224 x 224, normalized; the first is china.jpg."""
    photos = torch.cat([photograph(name) for name in ("china.jpg", "flower.jpg")])
    return torch.cat([photos, photos.flip(-1)])


def photograph(name: str) -> Tensor:
    """One sample photograph: the middle square, resized."""
    pixels = torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None].float() / 255
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[..., top : top + side, left : left + side]
    small = F.interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    means, deviations = (torch.tensor(v).view(3, 1, 1) for v in (CHANNEL_MEANS, CHANNEL_DEVIATIONS))
    return (small - means) / deviations
