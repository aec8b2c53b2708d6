"""Writes examples/fashion-mnist from the runs of accuracy.py: ``python benchmarks/ship.py [--runs FOLDER]``.

Five trained networks (seed 0), and the first 2,000 test images. Sub-bit networks are converted, verified, folded and
compared on all 10,000 test images before they are written; float and 1-bit ones are the tensors alone, in float16,
with the accuracy of these.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer
from torch import Tensor, nn

from accuracy import EPOCHS, FASHION_MNIST, Setting, run_of
from subbit_infer import convert, save
from subbit_infer.training import data, finish
from subbit_infer.training.run import Run

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "fashion-mnist"
TAU, SEED, IMAGES = 5, 0, 2000
NETWORKS = {
    "w32-a32": Setting("float", 3, 32, SEED), "w1-a32": Setting("1-bit", 3, 32, SEED),
    "w1-a1": Setting("1-bit", 3, 1, SEED), "w0.56-a32": Setting("clustered", TAU, 32, SEED),
    "w0.56-a1": Setting("clustered", TAU, 1, SEED),
}  # fmt: skip


def trained(setting: Setting, runs: Path, images: data.Images) -> Run:
    """The run as it ended."""
    run = run_of(setting, images)
    tensors = safetensors.torch.load_file(runs / f"{setting.name}.safetensors")
    run.model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    return run


@torch.inference_mode()
def predictions(model: nn.Module, inputs: Tensor) -> Tensor:
    """Classes, int64 (N,)."""
    return torch.cat([model(part).argmax(1) for part in inputs.split(1000)])


def notes_of(setting: Setting, runs: Path, run: Run, right: Tensor) -> dict[str, str]:
    """What the file is to say of itself."""
    result: dict[str, Any] = json.loads((runs / f"{setting.name}.json").read_text())
    return {
        "network": "subbit_infer.models.resnet8(in_channels=1)",
        "accuracy": f"{100 * right.float().mean():.2f} %",
        "right_of_first_2000": str(int(right[:IMAGES].sum())),
        "data": "Fashion-MNIST, 60,000 training images; accuracy on its 10,000 test images",
        "method": setting.method,
        "activation_bits": str(setting.activation_bits),
        "epochs": str(EPOCHS),
        "seed": str(setting.seed),
        "commit": result["environment"]["commit"],
        "mean": f"{run.mean.item():.6f}",
        "deviation": f"{run.deviation.item():.6f}",
    }


def write_slice(source: Path) -> None:
    """The first test images and labels, as IDX files packed by gzip."""
    for name, head in (("images-idx3", 16), ("labels-idx1", 8)):
        values = data.read_idx(source / f"t10k-{name}-ubyte.gz")
        sizes = (IMAGES, *values.shape[1:])
        content = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
        assert len(content) == head
        content += values[:IMAGES].numpy().tobytes()
        (FOLDER / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def main(
    runs: Annotated[Path, typer.Option(help="Where accuracy.py left its runs.")] = Path("out/accuracy"),
    source: Annotated[Path, typer.Option("--data", help="Folder of the data set.")] = FASHION_MNIST,
) -> None:
    """Write the networks and the images."""
    FOLDER.mkdir(exist_ok=True)
    images = data.load(source)
    write_slice(source)
    for file, setting in NETWORKS.items():
        run = trained(setting, runs, images)
        inputs = run.inputs(images.test)
        model = (run.model if setting.method == "float" and setting.activation_bits == 32 else finish(run.model)).eval()
        expected = predictions(model, inputs)
        path = FOLDER / f"{file}.safetensors"
        if setting.method == "clustered":
            converted = convert(model, inputs[:256], verify=True).model
            folded = convert(model, inputs[:256], fold=True, verify=True).model
            for name, other in (("converted", converted), ("folded", folded)):
                different = int((predictions(other, inputs) != expected).sum())
                typer.echo(f"{file}: {different} of {len(expected)} predictions differ, {name}")
            right = predictions(folded, inputs) == images.test_labels
            save(converted, path, notes_of(setting, runs, run, right))
        else:
            halves = {
                name: (value.half() if value.is_floating_point() else value).contiguous()
                for name, value in model.state_dict().items()
            }
            model.load_state_dict(halves)
            right = predictions(model, inputs) == images.test_labels
            safetensors.torch.save_file(halves, path, notes_of(setting, runs, run, right))
        typer.echo(f"{path.name}: {100 * right.float().mean():.2f} %, {path.stat().st_size} bytes")


if __name__ == "__main__":
    typer.run(main)
