"""Says of a flow run that it is over when its process was killed: `python -m pipeline.witness ID`.

A worker that ends, by Ctrl-C as by `kill`, kills the processes of its runs at once and tells the
server nothing of them (Prefect 3.8). A flow run therefore has a witness: a process of a session of
its own, which waits until its standard input closes. A run that ends by itself says farewell there;
of any other the witness asks the server, and tells it if it does not know.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

FAREWELL = b"."


@contextmanager
def witnessed(flow_run_id: str) -> Iterator[None]:
    """Have a witness for as long as this process works on a flow run."""
    witness = subprocess.Popen(
        [sys.executable, "-m", "pipeline.witness", flow_run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # the worker reads the run's until nobody holds it
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    except Exception:
        witness.communicate(FAREWELL)
        raise
    # What is no Exception tells it to end, and may be followed by a kill: no farewell then.
    witness.communicate(FAREWELL)


def settle(flow_run_id: UUID) -> None:
    """Give a flow run that has no final state one: cancelled if that was asked for, else crashed.

    The worker may have been faster, where it lives.
    """
    from prefect.client.orchestration import get_client  # slow, and seldom needed
    from prefect.states import Cancelled, Crashed

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
        if state and not state.is_final():
            kind = Cancelled if state.is_cancelling() else Crashed
            client.set_flow_run_state(flow_run_id, kind(message="Its process was killed."))


if __name__ == "__main__":
    if sys.stdin.buffer.read() != FAREWELL:
        settle(UUID(sys.argv[1]))
