"""Memory that was freed goes back to the system."""

import ctypes
import platform
import subprocess
import sys

import pytest

from defend.util import memory

KEEPS = """
import os
from pathlib import Path

from defend.util.memory import release_freed

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20  # MiB

blocks = [b"x" * 100_000 for _ in range(2000)]  # too small for pages of their own, so they lie in the heap
pin = b"x" * 100_000  # above them, so that the heap cannot end below
del blocks
before = held()
release_freed()
print(before - held())
"""


@pytest.fixture(autouse=True)
def _anew():
    memory._trim.cache_clear()
    yield
    memory._trim.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has malloc_trim")
def test_what_glibc_keeps_goes_back():
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150, "of 190 MiB"


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_elsewhere_nothing_happens(monkeypatch, error):
    def missing(_):
        raise error("no such function")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory.release_freed()
