"""Where the command's tests run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_helpers import ZOO


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A directory to be in, with a module of models."""
    (tmp_path / "zoo.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent), *sys.path])
    monkeypatch.delitem(sys.modules, "zoo", raising=False)
    yield tmp_path
    sys.modules.pop("zoo", None)
