"""The page of accuracies is what its generator writes, and says what the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accuracy
import accuracy_report

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def runs(**means: float) -> list[dict[str, Any]]:
    environment = {"cpu": "a processor", "commit": "0123456789"}
    return [
        {
            "method": method.replace("_", "-"), "tau": 3, "activation_bits": 32, "seed": seed,
            "accuracy": mean + 0.1 * (seed - 1), "log": [], "seconds": 60, "environment": environment,
        }
        for method, mean in means.items() for seed in accuracy.SEEDS
    ]  # fmt: skip


def test_the_page_is_made_of_the_figures():
    figures = json.loads((DOCS / "accuracy.json").read_text())
    assert (DOCS / "accuracy.md").read_text() == accuracy_report.page(figures)


def test_every_run_is_of_the_settings():
    figures = json.loads((DOCS / "accuracy.json").read_text())
    known = {setting.name for setting in accuracy.settings(quick=False)}
    names = [accuracy.Setting(*(run[key] for key in accuracy.Setting._fields)).name for run in figures]
    assert len(set(names)) == len(names)
    assert set(names) <= known


def test_settings_do_not_repeat():
    for quick in (True, False):
        names = [setting.name for setting in accuracy.settings(quick=quick)]
        assert len(set(names)) == len(names)


def test_the_table_is_in_order():
    table = accuracy_report.table(runs(vanilla=87.0, **{"1_bit": 90.0}, clustered=88.5), 3, 32)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| 1-bit",
        "| clustered (ours)",
        "| Vanilla-SNN",
    ]
    assert "| 88.50 | 0.10 | 88.40, 88.50, 88.60 |" in table


def test_a_gap_and_a_broken_order_are_said():
    said = accuracy_report.verdict(runs(**{"1_bit": 90.0}, clustered=88.0, snn=86.5, vanilla=87.0), 3, 32)
    assert "Vanilla-SNN is 3.00 points below 1-bit; clustered is 2.00 below, 33 % of the gap closed." in said
    assert "The paper's order does not hold here: Vanilla-SNN is 0.50 above SNN." in said
    assert accuracy_report.verdict(runs(vanilla=87.0), 3, 32) == ""


def test_all_of_it_is_written(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for number, run in enumerate(runs(**{"1_bit": 90.0}, clustered=88.0, vanilla=87.0)):
        (folder / f"{number}.json").write_text(json.dumps(run))
    accuracy_report.main(folder, tmp_path)
    assert "87.00" in (tmp_path / "accuracy.md").read_text()
    assert len(json.loads((tmp_path / "accuracy.json").read_text())) == 9
    assert (tmp_path / "figures" / "accuracy.png").stat().st_size > 10_000
