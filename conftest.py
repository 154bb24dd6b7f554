"""Test processes share the machine's cores: each takes its part of them, before torch is imported."""

import gc
import os

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))


def pytest_collection_finish() -> None:
    """Leave what is imported out of every garbage collection from here on: half a million objects, 0.7 s each time."""
    gc.collect()
    gc.freeze()
