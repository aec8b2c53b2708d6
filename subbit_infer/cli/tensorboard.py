"""Scalars of a training run for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scalars(folder: Path) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Gives what writes a row of the log, under its ``epoch``, to an event file in the folder.

    Raises:
        ImportError: TensorBoard is not installed; the message says how to get it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs TensorBoard: pip install tensorboard") from error
    with SummaryWriter(folder) as writer:

        def write(row: Mapping[str, float]) -> None:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(row["epoch"]))
            writer.flush()

        yield write
