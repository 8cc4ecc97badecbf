"""What every test process needs before torch or numba is imported: the thread settings of the engine's process.

Beside this file lies ``tolerances``, which tests can import.
"""

import os
import tempfile

from evenflow.serving.client.environment import default_cache_dir

# One compute thread and no spinning: tests run beside each other, and small kernels gain nothing from more.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "NUMBA_THREADING_LAYER": "omp",
    # The same folder as the engine's process: each kernel is compiled once per machine.
    "NUMBA_CACHE_DIR": str(default_cache_dir(os.environ)),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Triton kernels run in its interpreter, where there is no GPU (make gpu sets it to 0).
    "TRITON_INTERPRET": "1",
}.items():
    os.environ.setdefault(_name, _value)

# Engine processes that tests start keep converted adapters here, not in the user's own cache.
os.environ["XDG_CACHE_HOME"] = os.path.join(tempfile.gettempdir(), f"evenflow-tests-{os.getuid()}")
