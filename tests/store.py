"""An S3-compatible server on the loopback interface, as tests use it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs
from upath import UPath

SECRET = "hush-0123456789abcdef"
"""The secret key: a text that nothing but the environment may hold."""

SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def object_store() -> Iterator[str]:
    """A server of its own, known to this process and its children by the environment; its URL."""
    # A process of its own: some of GDAL's requests hold the lock that its threads would need.
    with (
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as s,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert s.stdin and s.stdout
        url = f"http://127.0.0.1:{s.stdout.readline().strip()}"
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("AWS_PROFILE", raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield url
        finally:
            s.stdin.close()
            s.wait()
            s3fs.S3FileSystem.clear_instance_cache()


def upload(folder: Path, url: str) -> UPath:
    """Put a folder into a bucket, which is made if it is not there."""
    target = UPath(url)
    target.fs.makedirs(target.drive, exist_ok=True)
    target.fs.put(f"{folder}/", f"{target.path}/", recursive=True)
    return target
