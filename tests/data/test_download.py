"""Downloads from a local server that can be told to misbehave."""

import errno
import hashlib
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet2012.config.enums import NAMED_SOURCES
from alexnet2012.config.schema import RunError
from alexnet2012.data.sources import download
from alexnet2012.data.sources.download import REMOTE_FILES, RemoteFile, fetch
from alexnet2012.utils.locks import locked

CONTENT = np.random.default_rng(0).bytes(200_000)


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "PAUSES_S", (0.001,) * 4)
        patch.setattr(download, "TIMEOUTS_S", (5.0, 5.0))
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@dataclass
class Answer:
    """How the server responds to one request; by default, correctly."""

    status: int = 200
    body: bytes = CONTENT
    stop: int | None = None  # drop the connection after this many bytes
    reset: bool = False  # drop it with a reset
    stall: bool = False  # keep the connection open, but send nothing more
    drip: bool = False  # send a byte at a time
    ranges: bool = True
    shift: int = 0  # offset between the range sent and the range requested
    announce: str = "length"  # or "chunks", or "nothing": the body ends with the connection


@dataclass
class Site:
    """The responses to successive requests, of which the last repeats; records the requests."""

    answers: list[Answer]
    base: str = ""
    asked: list[str | None] = field(default_factory=list)  # the Range of each request
    served_bytes: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def published(self, content: bytes = CONTENT, size: int | None = None) -> RemoteFile:
        return RemoteFile(f"{self.base}/a.tgz?x=1", "md5", hashlib.md5(content).hexdigest(), size)

    def next_answer(self, asked: str | None) -> Answer:
        with self.busy:
            self.asked.append(asked)
            return self.answers[min(len(self.asked), len(self.answers)) - 1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        answer = self.site.next_answer(asked)
        body, status = answer.body, answer.status
        self.close_connection = True
        start = 0
        if asked and answer.ranges and status == 200:
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + answer.shift
            status = 206 if start < len(body) else 416
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(body)}")
        body = body[start:]
        if answer.announce == "length":
            self.send_header("Content-Length", str(len(body)))
        if answer.announce == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if answer.drip:
            with suppress(OSError):
                for at in range(len(body)):
                    self.wfile.write(body[at : at + 1])
                    time.sleep(0.01)
            return
        self.send(body[: answer.stop], answer.announce == "chunks", answer.stop is None)
        if answer.stall:
            self.site.closing.wait()
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def send(self, body: bytes, chunked: bool, whole: bool) -> None:
        for at in range(0, len(body), 30_000):
            chunk = body[at : at + 30_000]
            self.site.served_bytes += len(chunk)  # before the client receives it
            try:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            except OSError:  # the client has hung up
                return
        if chunked and whole:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(*answers: Answer) -> Iterator[Site]:
    site = Site(list(answers))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"site": site}))
    server.daemon_threads = True
    site.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.005,))
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_downloaded_file_is_not_requested_again(tmp_path: Path) -> None:
    with serving(Answer()) as site:
        file = site.published()
        path = fetch(file, tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "a.tgz"
        assert path.read_bytes() == CONTENT
        assert fetch(file, path.parent) == path
        assert site.asked == [None]
    assert {p.name for p in path.parent.iterdir()} == {"a.tgz", "a.tgz.verified"}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, len(CONTENT)), max_size=8, unique=True),
    st.sampled_from(["length", "chunks", "nothing"]),
    st.sampled_from([None, len(CONTENT)]),
)
def test_a_dropped_connection_is_resumed_without_requesting_a_byte_twice(
    places: list[int], announce: str, size: int | None
) -> None:
    size = len(CONTENT) if announce == "nothing" else size  # otherwise a drop is undetectable
    ends = sorted(places)
    stops = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    answers = [Answer(stop=stop, announce=announce) for stop in stops]
    with serving(*answers, Answer()) as site, tempfile.TemporaryDirectory() as folder:
        path = fetch(site.published(size=size), Path(folder))
        assert path.read_bytes() == CONTENT
        assert site.served_bytes == len(CONTENT)


@pytest.mark.parametrize("bad", [Answer(stop=70_000, reset=True), Answer(stop=70_000, stall=True)])
def test_reset_and_stalled_connections_are_retried(
    bad: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUTS_S", (5.0, 0.1))
    with serving(bad, bad, Answer()) as site:
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT
        assert len(site.asked) == 3


def test_a_server_that_drips_is_given_up_and_what_it_sent_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SLOW_S", 0.05)
    with serving(Answer(drip=True)) as site:
        with pytest.raises(RunError, match=r"less than 61,440 bytes in 0 s.*run the same command"):
            fetch(site.published(), tmp_path)
        assert len(site.asked) == 1 + len(download.PAUSES_S)
    kept = (tmp_path / "a.tgz.part").read_bytes()
    assert kept and CONTENT.startswith(kept)


def test_a_server_that_ignores_ranges_starts_over(tmp_path: Path) -> None:
    with serving(Answer(stop=1000), Answer(stop=3000, ranges=False), Answer()) as site:
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT
        assert site.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_a_server_that_always_starts_over_and_drops_is_an_error(tmp_path: Path) -> None:
    with serving(Answer(stop=1000, ranges=False)) as site:
        with pytest.raises(RunError, match="1000 of 200000 bytes"):
            fetch(site.published(), tmp_path)
        assert len(site.asked) == 1 + 5


def test_a_range_other_than_the_requested_one_is_refused(tmp_path: Path) -> None:
    with serving(Answer(stop=1000), Answer(shift=-10)) as site:
        with pytest.raises(RunError, match="responded 206"):
            fetch(site.published(), tmp_path)
        assert (tmp_path / "a.tgz.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_retried(status: int, tmp_path: Path) -> None:
    busy = Answer(status=status, body=b"come back later")
    with serving(busy, busy, Answer()) as site:
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT
        assert len(site.asked) == 3


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with serving(Answer(status=404, body=b"gone")) as site:
        with pytest.raises(RunError, match=r"a\.tgz.*404 Not Found"):
            fetch(site.published(), tmp_path)
        assert len(site.asked) == 1


def test_after_five_attempts_without_progress_the_next_call_resumes(
    tmp_path: Path,
) -> None:
    with serving(Answer(stop=1000), Answer(status=503, body=b"")) as site:
        with pytest.raises(RunError) as caught:
            fetch(site.published(), tmp_path)
        assert len(site.asked) == 1 + 5
        message = str(caught.value)
        assert "503" in message and "\n" not in message
        assert f"1000 of 200000 bytes are in {tmp_path / 'a.tgz.part'}" in message
        assert "run the same command again to resume" in message
        assert not (tmp_path / "a.tgz").exists()

        site.answers = [Answer()]
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT
        assert site.asked[-1] == "bytes=1000-"
        assert site.served_bytes == len(CONTENT)


def test_progress_resets_the_number_of_attempts(tmp_path: Path) -> None:
    nothing = [Answer(stop=0)] * 4
    with serving(*nothing, Answer(stop=1), *nothing, Answer(stop=1), *nothing, Answer()) as site:
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT


def test_pauses_grow_while_there_is_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(download, "PAUSES_S", (1.0, 2.0, 4.0, 8.0))
    monkeypatch.setattr(download.time, "sleep", slept.append)
    with serving(Answer(stop=1), Answer(stop=0)) as site, pytest.raises(RunError):
        fetch(site.published(), tmp_path)
    assert slept == [1.0, 1.0, 2.0, 4.0, 8.0]


def test_a_download_with_a_wrong_digest_is_removed_naming_both_digests(tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + b"?"
    with serving(Answer(body=wrong)) as site:
        file = site.published()
        with pytest.raises(RunError) as caught:
            fetch(file, tmp_path)
    for part in (file.url, file.digest, hashlib.md5(wrong).hexdigest()):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bytes_beyond_the_size_of_the_file_are_ignored(tmp_path: Path) -> None:
    endless = Answer(body=CONTENT + bytes(100_000), announce="nothing", stall=True)
    with serving(endless) as site:
        assert fetch(site.published(size=len(CONTENT)), tmp_path).read_bytes() == CONTENT


def test_bytes_beyond_the_announced_length_are_ignored(tmp_path: Path) -> None:
    class Generous(Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT + bytes(10_000))
            self.site.closing.wait()

    with serving() as site, ThreadingHTTPServer(("127.0.0.1", 0), Generous) as server:
        Generous.site = site
        threading.Thread(target=server.handle_request).start()
        site.base = f"http://127.0.0.1:{server.server_port}"
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT
        site.closing.set()


@pytest.mark.parametrize("length", [1000, len(CONTENT) + 1])
def test_a_file_of_another_size_is_refused_and_the_partial_download_kept(
    length: int, tmp_path: Path
) -> None:
    page = Answer(body=bytes(length), ranges=False)  # for example a login page of the network
    message = f"has {length} bytes, expected {len(CONTENT)}"
    with serving(Answer(stop=5000), page) as site, pytest.raises(RunError, match=message):
        fetch(site.published(size=len(CONTENT)), tmp_path)
    assert (tmp_path / "a.tgz.part").read_bytes() == CONTENT[:5000]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_complete_partial_download_is_not_repeated(size: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.tgz.part").write_bytes(CONTENT)
    with serving(Answer()) as site:
        assert fetch(site.published(size=size), tmp_path).read_bytes() == CONTENT
        assert site.served_bytes == 0


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_partial_download_that_is_too_long_is_restarted(size: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.tgz.part").write_bytes(CONTENT + b"more")
    with serving(Answer()) as site:
        assert fetch(site.published(size=size), tmp_path).read_bytes() == CONTENT


def test_content_labelled_as_gzip_is_not_decompressed(tmp_path: Path) -> None:
    class Labelling(Handler):
        def end_headers(self) -> None:
            self.send_header("Content-Encoding", "gzip")  # as some servers do for .tgz files
            super().end_headers()

    with serving(Answer()) as site, ThreadingHTTPServer(("127.0.0.1", 0), Labelling) as server:
        Labelling.site = site
        threading.Thread(target=server.handle_request).start()
        site.base = f"http://127.0.0.1:{server.server_port}"
        assert fetch(site.published(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("host", ["nowhere.invalid", "127.0.0.1:{closed}"])
def test_without_a_network_the_error_says_where_to_put_the_file(host: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # without listening
        url = f"http://{host.format(closed=unused.getsockname()[1])}/a.tgz"
        with pytest.raises(RunError, match="no network") as caught:
            fetch(RemoteFile(url, "md5", "0" * 32), tmp_path)
    message = str(caught.value)
    assert url in message and "\n" not in message
    assert message.endswith(f"download the file elsewhere and put it at {tmp_path / 'a.tgz'}")


def test_a_file_copied_there_by_hand_is_verified_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RemoteFile("http://nowhere.invalid/a.tgz", "sha256", hashlib.sha256(b"1").hexdigest())
    (tmp_path / "a.tgz").write_bytes(b"1")
    assert fetch(file, tmp_path) == tmp_path / "a.tgz"
    with monkeypatch.context() as patch:
        patch.delattr(download, "_digest")
        assert fetch(file, tmp_path) == tmp_path / "a.tgz"


@pytest.mark.parametrize("verified_before", [False, True])
def test_a_wrong_file_copied_there_by_hand_is_refused_and_kept(
    verified_before: bool, tmp_path: Path
) -> None:
    file = RemoteFile("http://nowhere.invalid/a.tgz", "md5", hashlib.md5(b"1").hexdigest())
    path = tmp_path / "a.tgz"
    if verified_before:
        path.write_bytes(b"1")
        fetch(file, tmp_path)
    path.write_bytes(b"22")
    with pytest.raises(RunError, match=f"{file.digest}; remove it"):
        fetch(file, tmp_path)
    assert path.read_bytes() == b"22"


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=f"cannot be written to {tmp_path / 'file'}"):
        fetch(REMOTE_FILES["cifar10"], tmp_path / "file")


def test_four_threads_at_once_download_once(tmp_path: Path) -> None:
    with serving(Answer(stop=1000), Answer()) as site, ThreadPoolExecutor(4) as pool:
        file = site.published()
        paths = list(pool.map(lambda _: fetch(file, tmp_path), range(4)))
        assert site.served_bytes == len(CONTENT)
    assert {path.read_bytes() for path in paths} == {CONTENT}


def test_two_processes_at_once_download_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")  # before the server's thread exists
    with fork.Pool(2) as pool, serving(Answer(stop=1000), Answer()) as site:
        job = (site.published(), tmp_path, False)
        paths = [result.get() for result in [pool.apply_async(fetch, job) for _ in range(2)]]
        assert site.served_bytes == len(CONTENT)
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_waiting_process_says_so_and_gets_the_lock_when_its_holder_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        threading.Timer(0.1, holder.kill).start()
        with locked(path):
            assert holder.wait() != 0
    assert capsys.readouterr().err == f"waiting for another process that holds the lock {path}\n"


def test_a_lock_is_exclusive_although_each_holder_removes_the_file(tmp_path: Path) -> None:
    holders: list[int] = []
    most = []

    def hold(number: int) -> None:
        with locked(tmp_path / "lock"):
            holders.append(number)
            time.sleep(0.0001)  # gives other threads a chance
            most.append(len(holders))
            holders.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(200)))
    assert most == [1] * 200


def test_a_free_lock_is_acquired_silently_and_released_after_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "new" / "lock"):
        raise KeyError
    with locked(tmp_path / "new" / "lock"):
        pass
    assert list((tmp_path / "new").iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.filterwarnings("error")
def test_a_file_system_without_locks_is_an_error(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=os.strerror(code)), locked(tmp_path / "lock"):
        pytest.fail("the lock is held")


def test_remote_files_have_valid_digests_and_distinct_names() -> None:
    for file in REMOTE_FILES.values():
        assert len(bytes.fromhex(file.digest)) == hashlib.new(file.algorithm).digest_size
        assert file.digest == file.digest.lower()
    assert len({file.name for file in REMOTE_FILES.values()}) == len(REMOTE_FILES)
    assert REMOTE_FILES["imagenette"].name == "imagenette2-320.tgz"


def test_the_named_sources_are_photos_and_the_remote_files() -> None:
    assert ("photos", *REMOTE_FILES) == NAMED_SOURCES
