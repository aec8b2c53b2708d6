"""Which tests ``make test`` leaves to ``make test-all``: the mark ``slow``, set in one place by what was measured."""

from __future__ import annotations

import zlib

import pytest

# Files and tests of many seconds, each of which repeats at full size what quicker ones test in small.
SLOW = (
    "cuda/test_cuda_build.py",
    "cuda/test_product.py",
    "cuda/test_product_arithmetic.py",
    "cuda/test_sharing.py",
    "cuda/test_sparse.py",
    "conversion/test_graph_fold.py::test_any_chain",
    "conversion/test_graph_programs.py::test_networks",
    "conversion/test_graph_programs.py::TestPrograms::test_a_file_in_a_fresh_process",
    "conversion/test_graph_programs.py::TestPrograms::test_ahead_of_time",
    "conversion/test_modules_replace.py::test_networks",
    "conversion/test_convert.py::TestPrograms::test_a_program",
    "conversion/test_convert.py::TestModules::test_compressed",
    "conversion/test_convert.py::TestModules::test_fullgraph",
    "conversion/test_compression.py::test_a_copy_is_subbit_and_the_model_stays",
    "conversion/test_compression.py::test_max_bits_is_kept_and_used",
    "core/test_hamming_kmeans.py",
    "cpu/test_kernels_epilogue.py::TestWhatSurroundsTheSums::test_random_problems",
    "diagnostics/test_explain.py::test_a_network",
    "conversion/test_graph_pooling.py::test_a_batch_norm_with_negative_gains_stays_after_the_pooling",
    "formats/test_onnx_export.py::test_an_exported_folded_network",
    "models/test_models.py::test_a_maximum_is_not_taken_after_a_batch_norm_that_turns_the_order_around",
    "models/test_models.py::test_folded_equals_unfolded",
    "models/test_models.py::test_folded_networks_are_copies_that_can_be_saved",
    "models/test_models.py::test_fuse_is_the_one_conversion",
    "models/test_models.py::test_nothing_is_left_to_fold",
    "models/test_training.py::test_every_network",
    "training/test_ranks.py::test_other_methods_on_two_ranks",
    "cli/test_train.py::TestTorchrun",
    "models/test_models.py::test_folded_has_the_same_bits_where_nothing_is_rounded",
    "ops/test_ops.py::test_any_problem_equals_conv2d",
)

# Tests of hundreds of combinations: of these files one in EVERY is enough to see that something broke.
SAMPLED = (
    "cpu/test_kernels.py",
    "cpu/test_kernels_epilogue.py",
    "cpu/test_threads.py",
    "ops/test_ops.py",
    "core/test_epilogue.py",
)
EVERY = 8


def is_slow(node: str) -> bool:
    """Whether a test is left out, by its name below tests/; the same at every run."""
    if node.startswith(SLOW):
        return True
    return node.startswith(SAMPLED) and "[" in node and zlib.crc32(node.encode()) % EVERY != 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sets the mark."""
    for item in items:
        if is_slow(item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.slow)
