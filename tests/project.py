"""The whole project under DVC as tests run it: a copy with a tiny data set of the user's own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from tests.store import SECRET
from tests.tiles import tiny_pairs

ROOT = Path(__file__).parents[1]

TINY = {
    "dataset": "folder/tiny", "tile_size": 32, "width": 0.125, "hopfield_dim": 16,
    "pretrained": "none", "iterations": 2, "batch_size": 2, "warmup": 0, "validate_every": 2,
    "figures": ["test0_00000_00000"],
}  # fmt: skip

STAGES = [
    "download",
    "crop",
    "split",
    "validate",
    "shard",
    "network",
    "train",
    "evaluate",
    "figures",
    "report",
]


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": "token-of-the-environment",
}
"""In the environment of every command, and nowhere else afterwards."""

STORED = "password-in-config-local"
"""Of a remote that DVC knows by `.dvc/config.local`, which is in no repository."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


def environment() -> dict[str, str]:
    """Stages call `python`: that of these tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    who = {f"GIT_{role}_{key}": "tests@localhost" for role in ("AUTHOR", "COMMITTER")
           for key in ("NAME", "EMAIL")}  # fmt: skip
    return SECRETS | os.environ | who | {"PATH": path}


def run(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What a command prints; its exit status must be as expected."""
    done = subprocess.run(
        arguments, cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout
    assert not any(secret in done.stdout for secret in (*SECRETS.values(), STORED))
    return done.stdout


def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
    return run(folder, *command(*arguments), fails=fails)


def executed(printed: str) -> list[str]:
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]


def write_scenes(folder: Path) -> None:
    """Four georeference-free scenes of 2 x 2 tiles: two to train, one to validate, one to test."""
    for seed, (split, count) in enumerate({"train": 2, "val": 1, "test": 1}.items()):
        pairs, labels = tiny_pairs(count, 64, seed)
        for number in range(count):
            images = {"A": pairs[number, 0], "B": pairs[number, 1], "label": labels[number] * 255}
            for name, pixels in images.items():
                file = folder / split / name / f"{split}{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)


def copy_project(folder: Path) -> None:
    """The tracked files of the working tree as a git repository of their own."""
    listed = run(ROOT, "git", "ls-files").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet", "--initial-branch=main")


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", message)


def restore(folder: Path) -> None:
    """Go back to the last commit.

    A file that DVC has just written, of the same size as the committed one, is the same to git
    unless its time says otherwise.
    """
    for name in ("params.yaml", "dvc.lock"):
        (folder / name).touch()
    run(folder, "git", "reset", "--quiet", "--hard")
    dvc(folder, "checkout", "--force")


def tiny_project(folder: Path, params: dict[str, Any] = TINY) -> None:
    """Copy the project to `folder`, and its imagery beside that; nothing has been run."""
    imagery = folder.with_name("imagery")
    copy_project(folder)
    write_scenes(imagery)
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values.update(params | {"source": str(imagery)})
    yaml.dump(values, folder / "params.yaml")
    (folder / ".dvc/config.local").write_text(
        f"['remote \"vault\"']\n    url = s3://vault\n    secret_access_key = {STORED}\n"
    )
    commit(folder, "project")


def checkpoint_appears(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the training that `process` runs has saved its state."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if list((folder / ".dvc/tmp/resume").glob("*/last.pt")):
            return True
        time.sleep(0.01)
    return False
