"""A machine without a GPU never imports what is for GPUs."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import torch
import subbit_infer
from subbit_infer import PackedWeight, conv

weight = PackedWeight.from_indices(torch.zeros(4, 8, dtype=torch.int64), torch.ones(2, 1, 3, 3))
for _ in range(2):
    conv(torch.ones(1, 8, 5, 5), weight, output="both", activation_bits=1)
    conv(torch.ones(1, 8, 5, 5), weight)
print([name for name in sys.modules if name.startswith("subbit_infer.backends.cuda")])
"""


def test_a_convolution_on_the_cpu_imports_nothing_of_cuda():
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
