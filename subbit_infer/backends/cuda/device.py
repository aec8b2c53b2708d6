"""CUDA devices by torch alone: their facts, streams and captures."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """What the planner needs of a device.

    Attributes:
        name: as the driver has it.
        capability: major * 10 + minor.
        multiprocessors: their number.
    """

    name: str
    capability: int
    multiprocessors: int


@functools.cache
def facts_of(index: int) -> Device:
    """The facts of the device with a number; asked for once."""
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.major * 10 + properties.minor, properties.multi_processor_count)


def device_of(device: torch.device) -> Device:
    """The device's facts."""
    return facts_of(torch.cuda.current_device() if device.index is None else device.index)


@contextmanager
def stream_of(device: torch.device) -> Iterator[int]:
    """Makes the device current, and gives its current stream as launches take it."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_capture(device: torch.device) -> None:
    """Checks that what waits for the device may be done now.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    if is_capturing(device):
        raise RuntimeError(
            "a weight's first call on a device waits for the device, which captures of CUDA graphs forbid: "
            "call it once with such an input before the capture"
        )


def settle(device: torch.device) -> None:
    """Waits for what was just made, so that every stream may read it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
