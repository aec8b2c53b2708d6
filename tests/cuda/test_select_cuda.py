"""Which plan runs what on a GPU, pinned for any GPU on any machine. The times behind it are calculated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import UNIT_1X1, UNIT_3X3

from subbit_infer.backends import native
from subbit_infer.backends.cuda.planner import ROUTES

FLOAT32, FLOAT16, BFLOAT16 = range(3)
A100, A10, L40S, H100, B200, B300, RTX_PRO = (
    (80, 108), (86, 72), (89, 142), (90, 132), (100, 148), (103, 148), (120, 188)
)  # fmt: skip
GPUS = (A100, A10, L40S, H100, B200, B300, RTX_PRO)
USUAL = {"has_zeros": True, "is_channels_last": False, "packed_input": False, "float_output": True}
USUAL |= {"packed_output": False, "epilogue_commutes_with_rounding": False}
ORDERED = {"element": FLOAT16, "is_channels_last": True}


def candidates(
    gpu=H100, binary=False, element=FLOAT32, unit=UNIT_3X3, codewords=32, units=128, outputs=128, groups=1, batch=256,
    side=28, stride=1, has_sharing=True, has_product=True, has_sparse=None, **options,
):  # fmt: skip
    """The ways to run a layer, the quickest first."""
    if has_sparse is None:
        has_sparse = unit == UNIT_3X3 and codewords <= 8 and not binary
    out = (side - 1) // stride + 1
    return native.cuda_candidates(
        binary=binary, element=element, unit=native.UNITS[unit], codewords=codewords, units=units, outputs=outputs,
        groups=groups, batch=batch, pixels=out * out, input_pixels=side * side,
        capability=gpu[0], multiprocessors=gpu[1],
        routes=[name for name, has in zip(ROUTES, (has_sharing, has_product, has_sparse), strict=True) if has],
        **(USUAL | {"out_width": out} | options),
    )  # fmt: skip


def select(*gpu, **problem):
    return candidates(*gpu, **problem)[0]["plan"]


def microseconds(plan, *gpu, **problem):
    return next(c["microseconds"] for c in candidates(*gpu, **problem) if c["plan"] == plan)


# float16 that only has to be convolved is cuDNN's: it is taken to come nearer to the tensor cores' best, which on
# Hopper both reach by wgmma. What has an epilogue is fused.
@pytest.mark.parametrize(
    ("problem", "plans"),
    [
        ({}, {A100: "product", A10: "sharing", L40S: "sharing", H100: "product", RTX_PRO: "sharing"}),
        ({"codewords": 256}, {A100: "product", A10: "product", H100: "product"}),
        ({"codewords": 4}, {A100: "sparse", A10: "sparse", H100: "sparse"}),
        ({"codewords": 8}, {A100: "sparse", H100: "product"}),  # H100's dense product has wgmma, its sparse one has not
        ({"codewords": 9}, {A100: "product", H100: "product"}),
        (
            {"codewords": 4} | ORDERED,
            {A100: "sparse", A10: "sparse", L40S: "sparse", H100: "sparse", RTX_PRO: "sparse"},
        ),
        (
            {"codewords": 8} | ORDERED,
            {A100: "sparse", A10: "sparse", L40S: "sparse", H100: "sparse", RTX_PRO: "sparse"},
        ),
        ({"codewords": 4, "epilogue_commutes_with_rounding": True} | ORDERED, {A100: "sparse", H100: "sparse"}),
        ({"codewords": 8, "epilogue_commutes_with_rounding": True} | ORDERED, {A100: "sparse", H100: "dense"}),
        (
            {"codewords": 4, "batch": 1, "units": 512, "outputs": 512, "side": 7} | ORDERED,
            {A100: "product", H100: "product"},
        ),
        ({"element": FLOAT16, "is_channels_last": True}, {A100: "product", H100: "product"}),
        (
            {"element": BFLOAT16, "is_channels_last": True, "epilogue_commutes_with_rounding": True},
            {A100: "dense", H100: "dense"},
        ),
        ({"binary": True}, {A100: "product", A10: "product", H100: "product", B200: "product", RTX_PRO: "product"}),
        ({"binary": True}, {B300: "sharing"}),  # its int8 products are slower than its float32 additions
        ({"binary": True, "packed_input": True, "packed_output": True, "float_output": False}, {H100: "product"}),
    ],
)
def test_plan(problem, plans):
    assert {gpu: select(gpu, **problem) for gpu in plans} == plans


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("has_sharing", [True, False])
@pytest.mark.parametrize("has_product", [True, False])
@pytest.mark.parametrize("has_sparse", [True, False])
def test_only_what_has_a_kernel(gpu, has_sharing, has_product, has_sparse):
    found = candidates(gpu, codewords=4, has_sharing=has_sharing, has_product=has_product, has_sparse=has_sparse)
    has = {"sharing": has_sharing, "product": has_product, "sparse": has_sparse, "dense": True}
    plans = {plan for plan, is_there in has.items() if is_there}
    assert {c["plan"] for c in found} == plans
    times = [c["microseconds"] for c in found]
    assert times == sorted(times)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("element", [FLOAT32, FLOAT16])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("plan", ["sharing", "product", "dense"])
def test_time_grows_with_the_work(gpu, element, binary, plan):
    problem = {"element": element, "binary": binary}
    for more in ({"units": 512}, {"outputs": 512}, {"side": 56}, {"groups": 2}, {"batch": 512}):
        assert microseconds(plan, gpu, **problem, **more) > microseconds(plan, gpu, **problem), f"{more}"


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("element", [FLOAT32, FLOAT16])
@pytest.mark.parametrize("codewords", [4, 8])
def test_time_of_sparse_products_grows_with_the_work(gpu, element, codewords):
    problem = {"element": element, "codewords": codewords}
    for more in ({"units": 512}, {"outputs": 512}, {"side": 56}, {"groups": 2}, {"batch": 512}):
        assert microseconds("sparse", gpu, **problem, **more) > microseconds("sparse", gpu, **problem), f"{more}"


@pytest.mark.parametrize("problem", [{"codewords": 9}, {"unit": UNIT_1X1, "codewords": 4}, {"binary": True}])
def test_sparse_products_are_for_few_codewords_of_floats(problem):
    """Whatever the caller says."""
    assert "sparse" not in {c["plan"] for c in candidates(has_sparse=True, **problem)}


def test_sparse_products_take_what_the_method_promises():
    """2/9 and 4/9 of the product's multiply-adds, and the responses."""
    problem = {"units": 512, "outputs": 512} | ORDERED
    for codewords, least, most in ((4, 2 / 9, 0.4), (8, 4 / 9, 0.7)):
        ratio = microseconds("sparse", A100, codewords=codewords, **problem) / microseconds("product", A100, **problem)
        assert least < ratio < most


def test_boxes_that_are_not_filled_cost_time():
    """8 x 8 pixels fill a box of 64; of 9 x 9, two images share three boxes."""
    problem = {"codewords": 4, "units": 512, "batch": 512} | ORDERED
    ratio = microseconds("sparse", side=9, **problem) / microseconds("sparse", side=8, **problem)
    assert 1.35 < ratio < 1.6  # and not 81 / 64


def test_time_of_the_codebook_is_sharings_alone():
    for plan, grows in (("sharing", True), ("product", False), ("dense", False)):
        assert (microseconds(plan, codewords=256) > microseconds(plan, codewords=4)) == grows


SIGNS = {"binary": True, "packed_input": True, "units": 512, "outputs": 512}


def test_one_bit_products_are_emulated_on_later_gpus():
    """So signs are multiplied as int8 there, which is slower where everything else is as on an H100.

    By 17700 / 2 / 2540 = 3.5, one-bit products of two planes against int8, both by mma.sync; and what unpacking takes.
    """
    ratio = microseconds("product", (100, 132), **SIGNS) / microseconds("product", (90, 132), **SIGNS)
    assert 3.4 < ratio < 3.7


@pytest.mark.parametrize("gpu", [B200, RTX_PRO])
def test_int8_products_do_not_depend_on_zeros(gpu):
    assert microseconds("product", gpu, **SIGNS, has_zeros=False) == microseconds("product", gpu, **SIGNS)


@pytest.mark.parametrize("gpu", [B200, RTX_PRO])
def test_packed_signs_are_unpacked_before_int8_products(gpu):
    """By a launch of its own, which the product of bits does without."""
    small = {"binary": True, "packed_input": True, "batch": 1, "side": 7}
    assert microseconds("product", gpu, **small) > microseconds("product", H100, **small) + 2.5


def test_channels_fill_steps_of_int8_products():
    """64 channels of one tap: with 65 there are two steps."""
    times = [microseconds("product", B200, binary=True, outputs=2048, units=units) for units in (64, 65, 128)]
    assert times[1] > 1.5 * times[0]
    assert times[2] < 1.2 * times[1]


def test_wgmma_is_hoppers_and_of_the_large_tile():
    """Where everything else is as on a B200, floats take 62 % of the time there, signs and small calls as long."""
    problem = {"units": 512, "outputs": 512}
    for element in (FLOAT32, FLOAT16):
        times = [microseconds("product", (capability, 132), element=element, **problem) for capability in (90, 100)]
        assert 0.6 < times[0] / times[1] < 0.7
    for same in ({"batch": 1, "side": 7}, {"batch": 1, "side": 7, "element": FLOAT16}):
        times = [microseconds("product", (capability, 132), **problem, **same) for capability in (90, 100)]
        assert times[0] == times[1]


def test_activations_without_zeros_take_half_the_products():
    ratio = microseconds("product", **SIGNS) / microseconds("product", has_zeros=False, **SIGNS)
    assert 1.7 < ratio <= 2


def test_float16_in_order_is_not_copied():
    assert microseconds("product", element=FLOAT16, is_channels_last=True) < microseconds("product", element=FLOAT16)


def test_the_least_time_is_a_launch():
    for c in candidates(batch=1, side=3, units=1, outputs=1, unit=UNIT_1X1):
        assert c["microseconds"] > 2


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="element must be 0 to 2, got 3"):
        candidates(element=3)
    with pytest.raises(ValueError, match="multiprocessors must be at least 1, got 0"):
        candidates((90, 0))
    with pytest.raises(ValueError, match="the product of sizes overflows"):
        candidates(batch=1 << 40)
    with pytest.raises(ValueError, match="out_width must be 0 to pixels, got 785"):
        candidates(out_width=785)


CUDA = Path(__file__).parent.parent.parent / "csrc" / "cuda"


def test_the_table_of_routes_is_what_is_compiled():
    """Every kernel's translation unit and launch function, and the architecture that CMake gives it."""
    text = (CUDA / "routes.inc").read_text()
    routes = re.findall(r"^SUBBIT_CUDA_ROUTE\(\w+, (\w+)\)$", text, re.MULTILINE)
    assert tuple(routes) == ROUTES
    assert {c["plan"] for c in candidates(codewords=4)} == {*routes, "dense"}
    kernels = re.findall(r"^SUBBIT_CUDA_KERNEL\((\w+), (\w+), ([\w |]+), (\w+), ([\w/.]+)\)$", text, re.MULTILINE)
    assert len(kernels) == len(re.findall(r"^SUBBIT_CUDA_KERNEL\(", text, re.MULTILINE))
    assert {route for route, *_ in kernels} == set(routes)
    for route, launch, activations, _, unit in kernels:
        assert unit.startswith(f"{route}/")
        assert set(activations.split(" | ")) <= {"float32", "float16", "bfloat16", "binary"}
        assert re.search(rf"^cudaError_t {launch}\(.*\{{$", (CUDA / unit).read_text(), re.MULTILINE | re.DOTALL), launch
    units = {str(file.relative_to(CUDA)) for file in CUDA.rglob("*.cu")}
    dispatchers = {f"{route}/route.cu" for route in routes}
    assert units - dispatchers == {unit for *_, unit in kernels} - dispatchers
    cmake = (CUDA / "CMakeLists.txt").read_text()
    special = dict(re.findall(r"^add_kernels\(subbit_cuda_kernels_of_(hopper|last) ([\w/.]+)\)", cmake, re.MULTILINE))
    names = {"hopper": "90a", "last": "last"}
    compiled = {unit: names[target] for target, unit in special.items()}
    assert compiled == {unit: architecture for *_, architecture, unit in kernels if architecture != "80"}
