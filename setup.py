"""Builds subbit_infer._C, and _C_cuda where nvcc is found, with CMake and Ninja; all else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


class CleanBuildPy(build_py):
    """Copies the modules into an empty directory: a wheel must not hold what an earlier build left there."""

    def run(self) -> None:
        """Removes the package from the build directory, then copies it; an editable install builds in the sources."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "subbit_infer", ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Runs the CMake build and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Configures and builds in the temporary directory that setuptools names."""
        import pybind11

        ninja = shutil.which("ninja")  # None: CMake looks for it by other names, and says what is missing
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", str(ROOT), "-G", "Ninja",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('SUBBIT_BUILD_TYPE', 'Release')}",
            f"-DSUBBIT_SANITIZE={os.environ.get('SUBBIT_SANITIZE', 'OFF')}",
            f"-DSUBBIT_CUDA={os.environ.get('SUBBIT_CUDA', 'AUTO')}",
            # An isolated build brings its own ninja and pybind11 and deletes them afterwards, while CMake's cache
            # remembers where they were. So every build says anew where its tools are.
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
        ]  # fmt: skip
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(["cmake", "--build", "."], cwd=build, check=True)


setup(
    ext_modules=[Extension("subbit_infer._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": CleanBuildPy},
)
