"""Files that are written wholly or not at all."""

from __future__ import annotations

import os

import pytest

from subbit_infer.core.atomic import replacing


def test_replaces_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".txt")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_has_the_permissions_of_a_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "ours") as temporary:
        temporary.write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path, ""):
        with pytest.raises(ValueError, match="path must name a file"), replacing(path):
            pass
    with pytest.raises(FileNotFoundError, match=f"no such directory: {tmp_path}/no"), replacing(tmp_path / "no" / "a"):
        pass
    assert os.listdir(tmp_path) == []
