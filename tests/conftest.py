"""Set before torch is imported: every test process computes on one thread, so that parallel test
processes do not fight over the cores, and results do not depend on how many there are."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
