"""What stands in the place of NVIDIA's driver in a CUDA build (csrc/cuda_driver.c): without one, and with one made up here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda_driver.c"
HEADER = """
#include <stddef.h>
#define CUDAAPI
typedef enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_INITIALIZED = 3 } CUresult;
typedef int CUdevice, CUdevice_attribute, CUmemAllocationGranularity_flags;
typedef unsigned long long CUdeviceptr, CUmemGenericAllocationHandle;
typedef struct { int type; } CUmemAllocationProp;
typedef struct { int flags; } CUmemAccessDesc;
#define cuMemUnmap cuMemUnmap_v2
"""
CALLER = r"""
#include "cuda.h"
#include <stdio.h>
extern CUresult cuDeviceGet(CUdevice * device, int ordinal);
extern CUresult cuMemUnmap(CUdeviceptr at, size_t size);
extern CUresult cuGetErrorString(CUresult error, const char ** text);
int main(void) {
    CUdevice device = -1;
    const char * text = "";
    int got = cuDeviceGet(&device, 7);
    int unmapped = cuMemUnmap(1ull << 40, 5);
    cuGetErrorString(got, &text);
    printf("%d %d %d %s", got, device, unmapped, text);
}
"""
DRIVER = """
#include "cuda.h"
CUresult cuDeviceGet(CUdevice * device, int ordinal) { *device = ordinal * 10; return CUDA_SUCCESS; }
CUresult cuMemUnmap(CUdeviceptr at, size_t size) { return at == 1ull << 40 && size == 5 ? 77 : 1; }
CUresult cuGetErrorString(CUresult error, const char ** text) { *text = "the driver's own words"; return CUDA_SUCCESS; }
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a compiler")


def test_the_driver_is_looked_for_when_it_is_called(tmp_path: Path) -> None:
    for name, text in {"cuda.h": HEADER, "caller.c": CALLER, "driver.c": DRIVER}.items():
        (tmp_path / name).write_text(text)
    compiler = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", f"-I{tmp_path}"]
    program = tmp_path / "caller"
    subprocess.run([*compiler, tmp_path / "caller.c", SOURCE, "-ldl", "-o", program], check=True)
    empty = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "none")}
    without = subprocess.run([program], env=empty, capture_output=True, text=True).stdout
    if without.startswith("3 "):  # else this machine has one
        assert without == "3 -1 3 NVIDIA's driver is not installed"
    (tmp_path / "here").mkdir()
    driver = tmp_path / "here" / "libcuda.so.1"
    subprocess.run([*compiler, "-shared", "-fPIC", tmp_path / "driver.c", "-o", driver], check=True)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(driver.parent)}
    made_up = subprocess.run([program], env=environ, capture_output=True, text=True).stdout
    assert made_up == "0 70 77 the driver's own words"
