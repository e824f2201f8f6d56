"""Timings of the parts against straightforward code, side by side: `python -m benchmarks.<name>`.

Each renders its own data. What they printed, where and when: docs/performance.md.
"""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars between the tables help nobody
