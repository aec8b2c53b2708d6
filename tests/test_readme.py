"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))  # the second goes on
    exec(compile(example, str(README), "exec"), {})
    assert (tmp_path / "weight.safetensors").is_file()
