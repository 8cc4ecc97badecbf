import subprocess
import sys

_SCRIPT = """
from evenflow.base.openmp import share_openmp, start_numba_threads
share_openmp()
import ctypes, numba, numpy, torch
library = ctypes.CDLL("libgomp.so.1")

@numba.njit(parallel=True)
def bump(x):
    for i in numba.prange(2):
        x[i] += 1

start_numba_threads()
bump(numpy.zeros(2))
maps = open("/proc/self/maps").read().splitlines()
print(library.omp_get_max_active_levels(), len({line.split()[-1] for line in maps if "libgomp" in line}))
"""


def test_torch_and_numba_share_one_runtime_without_nested_teams():
    """Fails if numba's first kernel leaves nested parallelism on, or if torch brings a second libgomp."""
    environment = {"NUMBA_THREADING_LAYER": "omp", "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.split() == ["1", "1"], done.stdout + done.stderr
