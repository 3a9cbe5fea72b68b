"""Save a large model and read the newest one again, with room for it once and little more.

Usage: large_model.py STORE_URL MIB SPARE_MIB. More memory than that is refused by the kernel: a MemoryError.
"""

import resource
import sys
from pathlib import Path

import numpy as np

from fedops_mqtt.store.versions import ModelStore

MIB = 2**20


def main(url: str, mib: int, spare_mib: int) -> None:
    layers = {"embedding": mib // 2, "hidden": mib // 4, "head": mib // 4}
    store = ModelStore(url, task_id="large", model_name="net")
    store.save({"small": np.zeros(3)}, run_id="before")  # what is imported and started at the first use is not counted
    limit_memory((mib + spare_mib) * MIB)
    arrays = {name: np.full(size * MIB // 4, at, np.float32) for at, (name, size) in enumerate(layers.items())}
    arrays["head"][-1] = 0.5
    version = store.save(arrays, run_id="large", metrics={"accuracy": 0.5}).version
    del arrays
    found = ModelStore(url, task_id="large", model_name="net").newest()
    assert found is not None
    assert (found.version, found.run_id, found.passed_over) == (version, "large", ())
    assert {name: array.nbytes // MIB for name, array in found.arrays.items()} == layers
    ends = [float(array[0]) for array in found.arrays.values()] + [float(found.arrays["head"][-1])]
    assert ends == [0.0, 1.0, 2.0, 0.5]


def limit_memory(more_bytes: int) -> None:
    """Allow this process so much more memory of its own than it has now (setrlimit(2), RLIMIT_DATA; Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + more_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
