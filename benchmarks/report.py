"""Writes docs/performance.md: the latest figures, and what they depend on."""

from pathlib import Path

import figures
import gpu_tables
import tables
from grid import Grid
from results import Record

INTRODUCTION = """# Performance

The latest run of `make bench`, written by `make report`; nothing here is typed by hand. Milliseconds are medians. In
each comparison all contenders' results are checked first, and then they take turns in one process: a run that is not
timed, to warm the caches, and one that is. Milliseconds of different tables are of different minutes on a shared
machine: compare within a row. *A32* takes float activations, *A1* takes their signs, both from float NCHW to float
NCHW; *A1 packed* has packed signs in and out. *Float* is the fastest of those that convolve with the dense float32
weight: torch in both layouts (and compiled with frozen weights, for networks), ONNX Runtime and OpenVINO. *1-bit* is
OpenVINO's BinaryConvolution with its quantize and reorders, *its kernel* of that the compiled kernel alone, as its
profile says. A ratio under 1 is a loss; all of them are in a list of their own. Ratios of "16 of ResNet-18" and the
like weigh each layer by how often it occurs and take each layer's own fastest rival.
"""
FIGURES = {
    "speedups": "Speed-up of each layer over its fastest rival",
    "timeline": "The sixteen 3x3 layers of ResNet-18 by stage, like the paper's Figure 13",
    "roofline": "Achieved rates under the rates of the machine's instructions, measured in the same run",
    "networks": "Whole networks",
    "tau": "Time against tau",
    "outputs": "Time against the number of outputs",
    "batch": "Time of an image against the batch",
}
FIRST = ("networks", "networks-2threads")  # what people run, before its parts
TITLES = {
    "layers": "Layers, one thread",
    "layers-avx2": "Layers, everybody held to AVX2 (ONNX Runtime cannot be)",
    "layers-2threads": "Layers, two threads",
    "networks": "Networks, one thread",
    "networks-2threads": "Networks, two threads",
    "sweeps": "Sweeps",
    "sample": "A sample of all sizes",
    "plans": "The planner's choices",
    "threads": "Two threads against one",
    "calls": "Overhead of a call",
}


GPU_UNMEASURED = """## On a GPU

**Not yet measured.** No GPU was at hand. `make bench-cuda` measures ResNet-18's and -34's layers against cuDNN on the
GPU that it finds, and `make report` puts what it wrote here. [What the kernels should reach](gpu.md) is arithmetic.
"""


def write(records: dict[str, Record], gpu: Record | None, docs: Path) -> Path:
    """Writes the page and its figures, with what was measured on a GPU if it was; returns the page."""
    folder = docs / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw_all(records, folder)
    parts = [INTRODUCTION, *(_part(records[name], TITLES[name]) for name in FIRST if name in records)]
    parts += [_figure(path) for path in drawn if path.stem == "timeline"]
    parts += [_machine(records), _section(tables.of_bars(records)), _folded(tables.of_losses(records.values()))]
    parts.append("## Figures\n")
    parts += [_figure(path) for path in drawn if path.stem != "timeline"]
    parts += [_part(records[name], title) for name, title in TITLES.items() if name in records and name not in FIRST]
    parts.append(of_gpu(gpu))
    path = docs / "performance.md"
    path.write_text("\n".join(parts))
    return path


def _section(grid: Grid) -> str:
    return f"## {grid.title}\n\n{grid.markdown() if grid.rows else 'Nowhere in this run.'}"


def _figure(path: Path) -> str:
    return f"![{FIGURES[path.stem]}](figures/{path.name})\n"


def _folded(grid: Grid) -> str:
    """A long section behind a line that opens it."""
    if not grid.rows:
        return _section(grid)
    summary = f"<summary>All {len(grid.rows)} comparisons with a ratio under 1</summary>"
    return f"## {grid.title}\n\n<details>{summary}\n\n{grid.markdown()}\n</details>\n"


def _machine(records: dict[str, Record]) -> str:
    """What all parts have in common."""
    where = records.get("layers", next(iter(records.values()))).environment
    quick = "**A quick run: few rounds, sizes left out. Not for comparison.**\n\n" if where["quick"] else ""
    rows = [
        ["processor", where["cpu"]],
        ["its flags", ", ".join(where["flags"])],
        ["CPUs of the process", str(where["cpus"])],
        ["torch, ONNX Runtime, OpenVINO", f"{where['torch']}, {where['onnxruntime']}, {where['openvino']}"],
        ["Python, numpy, g++", f"{where['python']}, {where['numpy']}, {where['compiler']}"],
        ["commit (+: with changes)", where["commit"]],
        ["date", where["date"]],
    ]
    return f"## Machine\n\n{quick}{Grid('', ['', ''], rows, names=2).markdown()}"


def of_gpu(record: Record | None) -> str:
    """What was measured on a GPU; that nothing was, where there is no record."""
    if record is None:
        return GPU_UNMEASURED
    where = record.environment
    versions = f"torch {where['torch']}, cuDNN {where['cudnn']}, CUDA {where['cuda']['cuda']}"
    text = [
        f"## On a GPU: {where['gpu']}\n",
        f"`{where['command']}`: {versions}, {where['date']}, commit {where['commit']}. *Cold*: the second-level cache",
        "is overwritten before each call; *hot*: the same call came before. Batch 1 replays CUDA graphs.\n",
    ]
    for grid in (gpu_tables.of_totals(record), gpu_tables.of_rates(record), gpu_tables.of_bars(record)):
        text += [f"### {grid.title}\n", grid.markdown()]
    text += [f"- {note}.\n" for note in record.notes]
    return "\n".join(text)


def _part(record: Record, title: str) -> str:
    where = record.environment
    limits = "".join(f"{name}={value} " for name, value in where["limits"].items())
    setting = f"level {where['level']}, {where['threads']} thread(s), {where['date']}, commit {where['commit']}"
    text = [f"## {title}\n", f"`{where['command']}`: {setting}. {limits}\n"]
    for grid in tables.of_record(record):
        text += [f"### {grid.title}\n", grid.markdown()]
    text += [f"- {note}.\n" for note in record.notes]
    return "\n".join(text)
