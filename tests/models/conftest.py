"""Models are made here: no test asks a hub, and each computes in one thread."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
