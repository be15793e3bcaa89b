"""Compile the one C file that Triton compiles when its first kernel starts, so that the image needs no compiler.

    python prebuild_triton.py /opt/m2f/triton

Triton 3.7 looks for a C compiler (`CC`, gcc, clang) when a process starts its first kernel on an NVIDIA device, and
compiles `triton/backends/nvidia/driver.c`, the launcher of all kernels, into its cache. The kernels themselves need no
C compiler: Triton brings LLVM and ptxas. This program runs where the image is built, without a device or driver. It
writes the C file and the library that Triton makes of it to a folder; `prebuilt_cc.sh` beside them is the `CC` of the
image.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "cuda_utils"  # as Triton calls the library, which defines PyInit_cuda_utils


def prebuild(folder: Path) -> None:
    """Write cuda_utils.c, cuda_utils.so and the `CC` that hands them out to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        os.environ["TRITON_LIBCUDA_PATH"] = made
        from triton.backends.nvidia import driver
        from triton.runtime.build import _build

        source = folder / f"{NAME}.c"
        shutil.copyfile(Path(driver.dirname) / "driver.c", source)

        def build() -> Path:
            parts = driver.library_dirs(), driver.include_dirs, driver.libraries
            return Path(_build(NAME, str(source), made, *parts, []))

        # The real libcuda.so.1 comes with the driver of the machine that runs the image. The linker records that the
        # library needs a libcuda.so.1 only if the one that it sees has the names that the library uses.
        write_libcuda(Path(made), [])
        write_libcuda(Path(made), names_of_cuda(build()))
        shutil.copyfile(build(), folder / f"{NAME}.so")
    shutil.copy(Path(__file__).with_name("prebuilt_cc.sh"), folder)


def write_libcuda(folder: Path, names: list[str]) -> None:
    """Write a libcuda.so.1 with functions of these names, which do nothing."""
    code = "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    command: list[str | Path] = [
        "gcc",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
        "-o",
        folder / "libcuda.so.1",
        "-x",
        "c",
        "-",
    ]
    subprocess.run(command, input=code, text=True, check=True)


def names_of_cuda(library: Path) -> list[str]:
    """The functions of CUDA's driver that a library calls."""
    listed = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^ *U (cu[A-Z]\w*)$", listed, flags=re.MULTILINE)


if __name__ == "__main__":
    prebuild(Path(sys.argv[1]))
