"""glibc keeps what is freed, where nobody has chosen otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convad_fx
from convad_fx.allocator import _is_glibc

pytestmark = pytest.mark.skipif(not _is_glibc(), reason="another C library")

#: A block of 64 MB is filled again: how many pages did the system have to provide? The first few
#: blocks use up the 256 MB that glibc reserves at a time.
PROGRAM = """
import resource, sys, torch
if sys.argv[1] == "keep":
    import convad_fx
    assert convad_fx.keep_memory()
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def faults(how: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment["PYTHONPATH"] = str(Path(convad_fx.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < 5
    assert faults("leave") >= 32  # pages of 2 MB at most


@pytest.mark.parametrize(
    "name",
    ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"],
)
def test_what_the_environment_says_is_left_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "131072")
    assert not convad_fx.keep_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda _: None)
    assert not convad_fx.keep_memory()


#: 1300 sizes of batch, each met twice: by default oneDNN keeps the kernels of 1024.
CONVOLUTIONS = """
import torch
import convad_fx

convad_fx.keep_memory()
weight = torch.ones(8, 8, 1, 1)
for _ in range(2):
    for n in range(1, 1301):
        x = torch.ones(n, 8, 1, 1)
        torch.ops.aten.mkldnn_convolution(x, weight, None, (0, 0), (1, 1), (1, 1), 1)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_kernels_of_many_sizes_are_kept() -> None:
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    environment["PYTHONPATH"] = str(Path(convad_fx.__file__).parents[1])
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    command = [sys.executable, "-c", CONVOLUTIONS]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    made = [line for line in done.stdout.splitlines() if "create:cache_miss" in line]
    assert 1300 <= sum(",convolution," in line for line in made) < 1500
