"""Threads, processes and the OpenMP runtime they share."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, expected_conv, integers, prepared, random_weight
from threadpoolctl import threadpool_info

from subbit_infer import PackedWeight, conv, nn
from subbit_infer.backends import cpu, native
from subbit_infer.core.conv_args import ConvArgs, OutputLayout


def test_eight_threads_share_one_weight():
    indices, codebook = random_weight(UNIT_3X3, 70, 40, 32)
    inputs = [integers(2, 40, 15, 15, seed=seed) for seed in range(8)]
    expected = [
        [expected_conv(x, indices, codebook, padding=1, activation_bits=bits).float() for bits in (1, 32)]
        for x in inputs
    ]
    for _ in range(5):
        weight = PackedWeight.from_indices(indices, codebook)  # unprepared: the threads race to prepare it

        def work(i: int, weight: PackedWeight = weight) -> bool:
            return all(
                torch.equal(conv(inputs[i], weight, padding=1, activation_bits=bits), expected[i][j])
                for _ in range(5)
                for j, bits in enumerate((1, 32))
            )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


def test_the_gil_is_released():
    # While one thread is inside a long convolution another counts; with the GIL held it could not.
    layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_1X1, 256, 64, 64))
    x = torch.randn(4, 512, 56, 56)
    count, done = 0, False

    def convolve() -> int:
        nonlocal done
        for _ in range(3):
            layer(x)
        done = True
        return 0

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(convolve)
        while not done:
            count += 1
        future.result()
    assert count > 1000


HERE = Path(__file__).parent.parent  # where helpers.py is, and the package is not
PRELUDE = """
import os, torch
from subbit_infer import PackedWeight, conv
from helpers import *
torch.set_num_threads(2)
weight = random_weight(UNIT_3X3, 70, 40, 32)
x = integers(2, 40, 15, 15)
expected = conv(x, *weight)
"""


def run_python(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + program], cwd=HERE, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_forked_child_runs_serially_instead_of_hanging():
    program = """
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(conv(x, *weight), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
print("child done", torch.equal(conv(x, *weight), expected))
"""
    assert run_python(program) == "child done True\n"


def test_forking_while_a_weight_is_prepared():
    program = """
import threading, time
big = PackedWeight.from_indices(torch.zeros(4000, 3000, dtype=torch.int64), weight[1])
image = torch.ones(1, 3000, 3, 3)
for delay in (0.001, 0.01, 0.03):
    thread = threading.Thread(target=lambda: conv(image, PackedWeight(**vars(big))))
    thread.start()
    time.sleep(delay)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(conv(x, weight[0].clone(), weight[1]), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
print("done")
"""
    assert run_python(program) == "done\n"


def test_one_openmp_runtime():
    conv(integers(2, 40, 15, 15), *random_weight(UNIT_3X3, 70, 40, 32))
    runtimes = {info["filepath"] for info in threadpool_info() if info["user_api"] == "openmp"}
    ours = [path for path in runtimes if "sklearn" not in path and "scikit_learn" not in path]
    assert len(ours) == 1, ours
    assert os.path.join("torch", "lib") in ours[0]


def test_the_extension_links_no_openmp_and_no_torch():
    libraries = subprocess.run(["ldd", native._C.__file__], capture_output=True, text=True, check=True).stdout
    assert "omp" not in libraries
    assert "torch" not in libraries


def test_prepared_weights_die_with_their_tensors():
    weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 4, 5, 8))
    conv(integers(1, 5, 6, 6), weight)
    found = cpu.find_prepared(weight.packed_indices, weight.packed_codebook, 5, 8, UNIT_3X3)
    prepared = weakref.ref(found)
    del found
    assert prepared() is not None
    del weight
    gc.collect()
    assert prepared() is None


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("plan", ["rows", "patches", "bits"])
@pytest.mark.parametrize("channels", [16, 256, 2048])
@pytest.mark.parametrize("side", [7, 56, 224])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_thread_needs_at_most_4_mib_of_scratch_memory(unit, plan, channels, side, stride):
    indices, codebook = random_weight(unit, 512, channels // unit[0], 32)
    weight = PackedWeight.from_indices(indices, codebook)
    out = (side - 1) // stride + 1
    image = torch.empty(1, channels, side, side, device="meta")
    pad = (unit[1] // 2,) * 2
    for x in (image, image.contiguous(memory_format=torch.channels_last)):
        for bits in (1,) if plan != "rows" else (1, 32):
            args = ConvArgs.of_weight(x, weight, stride=(stride, stride), padding=pad, activation_bits=bits)
            layout = OutputLayout((1, 512, out, out), torch.float32, (512 * out * out, out * out, out, 1), None, False)
            conv = cpu.planned(prepared(weight), args, layout, plan=plan)
            assert conv.scratch_bytes <= 4 << 20
