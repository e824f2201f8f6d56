"""Tables as Parquet."""

import subprocess
import sys

import pandas as pd

from dsfer.data.manifest import write_table

THREADS_LEFT = """
import sys
from pathlib import Path
from psutil import Process
from dsfer.data.manifest import read_table
before = Process().num_threads()
read_table(Path(sys.argv[1]))
sys.exit(Process().num_threads() - before)
"""


def test_reading_a_table_leaves_no_thread_that_could_abort_the_process(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, pd.DataFrame({"id": ["a", "b"], "row": [0, 16]}))
    subprocess.run([sys.executable, "-c", THREADS_LEFT, str(path)], check=True)
