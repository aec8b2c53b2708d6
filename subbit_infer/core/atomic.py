"""Files that are written wholly or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a new empty file to write; it takes the place of ``path`` at the end, or, on failure, is removed.

    The file is in the same directory, has the same suffix (some writers go by it) and the permissions of any new file.

    Raises:
        ValueError: ``path`` names no file.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if not target.name or target.is_dir():
        raise ValueError(f"path must name a file, got {os.fspath(path)!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {target.parent}")
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
