"""Downloads against a real server on the loopback interface."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_none

from dsfer.errors import DownloadError
from pipeline import download
from pipeline.catalog import Archive
from pipeline.download import ROUNDS, downloads_folder, fetch
from tests.disks import PAGE
from tests.project import ROOT

QUOTA_PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"


def make_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("A/1.png", hashlib.sha512(b"seed").digest() * 4000)
    return out.getvalue()


CONTENT = make_zip()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how: /ok, /no-range, /cut (once), /gone, /page, /busy, ..."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *args):
        pass

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        count = sum(path == self.path for path, _ in self.server.requests)
        if self.path == "/gone":
            return self.answer(404, b"not here")
        if self.path == "/busy" and count == 1:
            return self.answer(503, b"later")
        if self.path == "/page":
            return self.answer(200, QUOTA_PAGE, kind="text/html; charset=utf-8")
        if self.path == "/other":
            return self.answer(200, CONTENT[:-1] + b"?")
        if self.path == "/private" and self.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
            return self.answer(401, b"who are you?")
        if self.path == "/hop":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if self.path == "/stall" and count == 1:
            self.answer(200, CONTENT, cut=200_000)
            self.wfile.flush()
            return self.server.killed.wait(60)
        if self.path == "/no-range" or not wanted:
            return self.answer(200, CONTENT, cut=20_000 if self.path == "/cut" else None)
        if start >= len(CONTENT):
            return self.answer(416, b"no such range")
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        return self.answer(206, CONTENT[start:], {"Content-Range": span})

    def answer(self, status, body, headers=None, kind="application/zip", cut=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.killed = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def archive(server: Server, *paths: str, **facts: object) -> Archive:
    return Archive(
        name="train.zip",
        kind="zip",
        urls=tuple(server.url(path) for path in paths),
        by_hand="train.zip from the homepage",
        **facts,
    )


def known(server: Server, *paths: str) -> Archive:
    return archive(server, *paths, md5=MD5, bytes=len(CONTENT))


def get(wanted: Archive, folder: Path) -> Path:
    return fetch(wanted, folder, back_off=wait_none())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_whole(server, tmp_path):
    path = get(known(server, "ok"), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert visible(path.parent) == ["train.zip"]
    assert server.requests == [("/ok", None)]


def test_a_second_call_asks_for_nothing(server, tmp_path):
    get(known(server, "ok"), tmp_path)
    get(known(server, "ok"), tmp_path)
    assert len(server.requests) == 1


def test_redirects_are_followed(server, tmp_path):
    assert get(known(server, "hop"), tmp_path).read_bytes() == CONTENT


def test_a_broken_connection_is_continued_with_the_missing_bytes_only(server, tmp_path):
    assert get(known(server, "cut"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/cut", None), ("/cut", "bytes=20000-")]


def test_a_partial_file_of_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "train.zip.part").write_bytes(CONTENT[:12_345])
    assert get(known(server, "ok"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/ok", "bytes=12345-")]
    assert visible(tmp_path) == ["train.zip"]


def test_a_kill_in_the_middle_loses_nothing_that_came(server, tmp_path):
    wanted = known(server, "stall")
    code = (
        "import sys; from pathlib import Path; from pipeline.catalog import Archive; "
        "from pipeline.download import fetch; "
        "fetch(Archive.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, wanted.model_dump_json(), str(tmp_path)]
    partial = tmp_path / "train.zip.part"
    with subprocess.Popen(command, cwd=ROOT) as downloading:
        while not (partial.exists() and partial.stat().st_size) and downloading.poll() is None:
            time.sleep(0.01)
        downloading.kill()
    server.killed.set()
    held = partial.stat().st_size
    assert 0 < held < len(CONTENT)
    assert get(wanted, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/stall", None), ("/stall", f"bytes={held}-")]


def test_user_and_password_come_from_netrc_and_are_not_repeated(
    server, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password wrong-secret\n")
    with pytest.raises(DownloadError) as caught:
        get(known(server, "private"), tmp_path / "a")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    assert get(known(server, "private"), tmp_path / "a").read_bytes() == CONTENT
    assert "secret" not in f"{caught.value} {caplog.text}"


def test_the_next_mirror_continues_what_the_first_began(server, tmp_path):
    assert get(known(server, "cut", "ok"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/cut", None), ("/ok", "bytes=20000-")]


def test_a_complete_partial_file_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "train.zip.part").write_bytes(CONTENT)
    assert get(known(server, "ok"), tmp_path).read_bytes() == CONTENT
    assert server.requests == []
    # Without a published size the server has to say that nothing is missing.
    (tmp_path / "train.zip").rename(tmp_path / "train.zip.part")
    assert get(archive(server, "ok", md5=MD5), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("held", [b"\0" * 5000, CONTENT[:-1] + b"!", CONTENT + b"more"])
def test_a_partial_file_of_something_else_is_started_over(server, tmp_path, held):
    (tmp_path / "train.zip.part").write_bytes(held)
    assert get(known(server, "ok"), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("/ok", None)


def test_a_server_that_cannot_continue_is_asked_for_the_whole(server, tmp_path):
    (tmp_path / "train.zip.part").write_bytes(CONTENT[:100])
    assert get(known(server, "no-range"), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == ["bytes=100-", None]


def test_a_busy_server_is_asked_again(server, tmp_path):
    assert get(known(server, "busy"), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_dead_and_missing_mirrors_are_passed_over(server, tmp_path):
    wanted = known(server, "gone", "ok")
    dead = "http://127.0.0.1:1/train.zip"
    wanted = wanted.model_copy(update={"urls": (dead, *wanted.urls)})
    assert get(wanted, tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/gone", "/ok"]


def test_a_dead_mirror_is_given_up_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waits = []

    def back_off(state):
        waits.append(state.attempt_number)
        return 0

    wanted = Archive(
        name="a.zip", kind="zip", urls=("http://127.0.0.1:1/a.zip",), by_hand="from the homepage"
    )
    with pytest.raises(DownloadError, match="by hand: from the homepage") as caught:
        fetch(wanted, tmp_path, back_off)
    assert "127.0.0.1:1" in str(caught.value)
    assert waits == list(range(1, ROUNDS + 1))


def test_back_off_grows():
    class State:
        def __init__(self, attempt):
            self.attempt_number = attempt

    longest = [max(download.BACK_OFF(State(n)) for _ in range(200)) for n in (1, 2, 3, 4)]
    assert longest == sorted(longest)
    assert longest[0] <= 2 < longest[2] <= 8 < longest[3] <= 16


def test_wrong_hash(server, tmp_path):
    with pytest.raises(DownloadError) as caught:
        get(known(server, "other"), tmp_path)
    found = hashlib.md5(CONTENT[:-1] + b"?").hexdigest()
    assert found in str(caught.value)
    assert MD5 in str(caught.value)
    assert str(tmp_path / "train.zip") in str(caught.value)
    assert visible(tmp_path) == []
    assert len(server.requests) == 1  # a file that is wrong as a whole is not asked for again


def test_wrong_size(server, tmp_path):
    with pytest.raises(DownloadError, match=f"has {len(CONTENT)} bytes, the published file 9"):
        get(archive(server, "ok", bytes=9), tmp_path)


def test_a_quota_page_never_passes_for_an_archive(server, tmp_path):
    with pytest.raises(DownloadError, match="is a web page"):
        get(archive(server, "page"), tmp_path)
    assert visible(tmp_path) == []
    assert get(known(server, "page", "ok"), tmp_path).read_bytes() == CONTENT


def test_a_quota_page_does_not_cost_what_is_already_here(server, tmp_path):
    (tmp_path / "train.zip.part").write_bytes(CONTENT[:5000])
    with pytest.raises(DownloadError, match="run again to continue"):
        get(known(server, "page"), tmp_path)
    assert (tmp_path / "train.zip.part").read_bytes() == CONTENT[:5000]


def test_a_full_disk_stops_the_transfer(server, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="more than the disk has free"):
        get(known(server, "ok"), tmp_path)
    assert not (tmp_path / "train.zip").exists()


def test_a_disk_that_is_fuller_than_it_says(server, small_disk, monkeypatch):
    usage = download.shutil.disk_usage(small_disk.folder)
    small_disk.fill(room=3 * PAGE)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space left") as caught:
        get(known(server, "ok"), small_disk.folder)
    partial = small_disk.folder / "train.zip.part"
    assert caught.value.filename == str(partial)
    assert 0 < partial.stat().st_size < len(CONTENT)
    small_disk.clear()
    assert get(known(server, "ok"), small_disk.folder).read_bytes() == CONTENT


def test_by_hand(server, tmp_path):
    (tmp_path / "train.zip").write_bytes(CONTENT)
    assert get(known(server), tmp_path) == tmp_path / "train.zip"
    assert server.requests == []


def test_by_hand_but_wrong_is_explained_and_left_alone(server, tmp_path):
    wrong = CONTENT[:-1] + b"?"
    (tmp_path / "train.zip").write_bytes(wrong)
    with pytest.raises(DownloadError) as caught:
        get(known(server, "ok"), tmp_path)
    for part in (str(tmp_path / "train.zip"), hashlib.md5(wrong).hexdigest(), MD5, "by_hand"[3:]):
        assert part in str(caught.value)
    assert (tmp_path / "train.zip").read_bytes() == wrong
    assert server.requests == []


def test_nothing_to_download_from(server, tmp_path):
    with pytest.raises(DownloadError, match="no public address") as caught:
        get(archive(server), tmp_path)
    assert f"{tmp_path / 'train.zip'}" in str(caught.value)
    assert "by hand: train.zip from the homepage" in str(caught.value)


def test_without_a_published_hash_the_first_download_pins_one(server, tmp_path, caplog):
    path = get(archive(server, "ok"), tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert json.loads((tmp_path / "pins.json").read_text()) == {"train.zip": digest}
    assert "no hash is published" in caplog.text
    assert digest in caplog.text
    get(archive(server), tmp_path)  # the same file again passes

    path.write_bytes(zip_of_another_day())
    with pytest.raises(DownloadError, match=r"is pinned in pins\.json"):
        get(archive(server), tmp_path)
    assert path.exists()


def zip_of_another_day() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("B/1.png", b"new")
    return out.getvalue()


def test_a_damaged_archive_is_never_pinned(server, tmp_path):
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    (tmp_path / "train.zip").write_bytes(damaged)
    with pytest.raises(DownloadError, match="not a whole archive"):
        get(archive(server), tmp_path)
    assert not (tmp_path / "pins.json").exists()


def test_a_rar_without_a_program_stops_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = Archive(name="a.rar", kind="rar", urls=(server.url("ok"),), by_hand="x")
    with pytest.raises(DownloadError, match="none is installed"):
        get(wanted, tmp_path)
    assert server.requests == []


def test_downloads_are_shared_by_the_copies_that_experiments_run_in(monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert downloads_folder("cdd") == Path("data/downloads/cdd")
    monkeypatch.setenv("DVC_ROOT", f"{os.sep}project")
    assert downloads_folder("cdd") == Path("/project/data/downloads/cdd")
