"""Fixtures of the CUDA tests: kernels' bodies on the CPU, the stand-in for the module, plans on a device."""

from __future__ import annotations

import contextlib
import ctypes

import fake_cuda
import pytest
from device_tests import PLANS
from helpers import UNIT_1X1
from host_shim import build_shim
from stand_in import FIRST, H100
from torch.nn import functional as F

from subbit_infer import backends
from subbit_infer.backends.cuda import convolution, runtime
from subbit_infer.backends.cuda import cudnn as cuda_cudnn
from subbit_infer.backends.cuda import device as cuda_device


@pytest.fixture(scope="session")
def sharing_shim(tmp_path_factory) -> ctypes.CDLL:
    return build_shim(tmp_path_factory.mktemp("sharing_shim"), "sharing_shim")


@pytest.fixture(scope="session")
def product_shim(tmp_path_factory) -> ctypes.CDLL:
    library = build_shim(tmp_path_factory.mktemp("product_shim"), "product_shim")
    library.product_error.restype = ctypes.c_char_p
    library.product_scratch.restype = ctypes.c_int64
    return library


@pytest.fixture(scope="session")
def sparse_shim(tmp_path_factory) -> ctypes.CDLL:
    library = build_shim(tmp_path_factory.mktemp("sparse_shim"), "sparse_shim")
    library.sparse_error.restype = ctypes.c_char_p
    return library


# Where a test runs without a device: tests/cuda/fake_cuda.py in the place of the CUDA module.


@pytest.fixture
def module(monkeypatch, has_a_kernel):
    """The stand-in in the place of the module, CPU tensors in the place of a device's."""
    module = fake_cuda.Module()
    monkeypatch.delenv("SUBBIT_PLAN", raising=False)
    monkeypatch.setattr(runtime, "_C_cuda", module)
    monkeypatch.setattr(runtime, "is_built", lambda: True)
    monkeypatch.setattr(convolution, "_is_right", lambda *kind: True)
    monkeypatch.setattr(cuda_device, "device_of", lambda device: H100)
    monkeypatch.setattr(cuda_device, "stream_of", lambda device: contextlib.nullcontext(fake_cuda.STREAM))
    original = backends.backend_of
    monkeypatch.setattr(backends, "backend_of", lambda device, unit: original(FIRST, unit))
    return module


@pytest.fixture
def cudnn(monkeypatch):
    """torch's CPU convolution in the place of cuDNN's; what it was asked for."""
    calls = []

    def dense_sums(x, weight, stride, padding, dilation, groups, *, allow_tf32):
        calls.append((x.dtype, weight.dtype, allow_tf32))
        return F.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups).to(x.dtype)

    monkeypatch.setattr(cuda_cudnn, "has_cudnn", lambda x, sizes: True)
    monkeypatch.setattr(cuda_cudnn, "dense_sums", dense_sums)
    return calls


@pytest.fixture
def has_a_kernel(request):
    """Skips what the sparse route has no kernel for."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if given.get("plan") == "sparse" and (given.get("activation_bits") == 1 or given.get("unit") == UNIT_1X1):
        pytest.skip("the sparse route has no kernel for binary activations and for 1x1 units")


# Where it runs on one.


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Every test that takes it runs by every plan; kernels that cannot run a problem leave it to the quickest."""
    given = request.node.callspec.params
    if request.param == "sparse" and (given.get("activation_bits") == 1 or given.get("unit") == UNIT_1X1):
        pytest.skip("the sparse route has no kernel for binary activations and for 1x1 units")
    monkeypatch.setenv("SUBBIT_PLAN", request.param)
    return request.param


@pytest.fixture(params=("sharing", "product", "dense"))
def binary_plan(request, monkeypatch):
    """The plans for binary activations."""
    monkeypatch.setenv("SUBBIT_PLAN", request.param)
    return request.param


@pytest.fixture(params=PLANS[:3])
def kernels(request, monkeypatch):
    """The plans whose arithmetic is this package's own."""
    monkeypatch.setenv("SUBBIT_PLAN", request.param)
    return request.param


@pytest.fixture
def planner(monkeypatch):
    """The plan is the planner's."""
    monkeypatch.delenv("SUBBIT_PLAN", raising=False)
