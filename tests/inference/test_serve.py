"""The server of the page: its responses, and the requests that it refuses."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from serving import serving

from alexnet2012 import serve
from alexnet2012.config.compose import compose_config
from alexnet2012.config.inference_schema import ServeConfig
from alexnet2012.config.schema import ConfigError
from alexnet2012.inference.activations import inspect_image, pack_inspection
from alexnet2012.inference.images import stored_pixels
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.inference.web import server as web_server
from alexnet2012.inference.web.server import MAX_UPLOAD_BYTES, ModelSession, Server


@pytest.fixture(scope="module")
def server(net: TrainedModel) -> Iterator[Server]:
    with serving(net, views=1) as server:
        yield server


@pytest.fixture(scope="module")
def picture(photos_folder: Path) -> bytes:
    return (photos_folder / "val" / "coffee" / "0000.jpg").read_bytes()


def post(server: Server, data: bytes, path: str = "look", **headers: str) -> requests.Response:
    origin = {"Origin": server.address.rstrip("/")}
    return requests.post(server.address + path, data=data, headers=origin | headers, timeout=30)


def bomb() -> bytes:
    """A small PNG that claims 12,000 × 12,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def test_an_image_is_answered_with_its_inspection(
    server: Server, net: TrainedModel, picture: bytes
) -> None:
    answer = post(server, picture)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/octet-stream")
    assert answer.content == pack_inspection(
        inspect_image(net, stored_pixels(picture, len(net.mean_image)), 1)
    )


def test_the_page_is_self_contained_and_its_policy_blocks_other_content(server: Server) -> None:
    answer = requests.get(server.address, timeout=30)
    page, policy = answer.text, answer.headers["Content-Security-Policy"]
    assert answer.status_code == 200
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', page))
    assert f"script-src 'nonce-{nonce}'" in policy and "default-src 'none'" in policy
    assert nonce not in requests.get(server.address, timeout=30).text
    assert re.findall(r"https?://|style=|onload|onclick", page) == []
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    photos = re.findall(r'src="(/photos/\w+)"', page)
    assert len(photos) == 16
    photo = requests.get(server.address.rstrip("/") + photos[0], timeout=30)
    assert Image.open(io.BytesIO(photo.content)).size == (256, 256)
    assert post(server, photo.content).status_code == 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not an image in a supported format"),
        (b"BROKEN", "The image cannot be used: "),
        (b"BOMB", "12000 × 12000 pixels exceed the limit"),
    ],
)
def test_an_unusable_image_is_reported_and_the_server_continues(
    server: Server, picture: bytes, data: bytes, words: str
) -> None:
    data = {b"BROKEN": picture[:900], b"BOMB": bomb()}.get(data, data)
    answer = post(server, data)
    assert answer.status_code == 422
    assert words in answer.text and answer.text.count("\n") == 1
    assert post(server, picture).status_code == 200


def test_a_too_large_upload_is_refused(server: Server, picture: bytes) -> None:
    answer = post(server, bytes(MAX_UPLOAD_BYTES + 1))
    assert (answer.status_code, answer.text) == (
        413,
        "67,108,865 bytes exceed the limit of 67,108,864.\n",
    )
    assert post(server, picture).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "elsewhere.example"}, 421),
        ({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, 421),
        ({"Host": "192.0.2.1"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),  # through a tunnel
        ({"Host": "[::1]:8012", "Origin": "http://[::1]:8012"}, 200),
    ],
)
def test_only_requests_of_the_page_to_this_machine_are_answered(
    server: Server, picture: bytes, headers: dict[str, str], code: int
) -> None:
    assert post(server, picture, **headers).status_code == code
    if "Host" in headers:
        page = requests.get(server.address, headers=headers, timeout=30)
        assert page.status_code == code
        if code == 421:
            assert server.address in page.text


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/?from=a+bookmark", 200),
        ("/photos/chelsea", 200),
        ("/photos/../setup.cfg", 404),
        ("/photos/%2e%2e/setup.cfg", 404),
        ("/photos/", 404),
        ("/etc/passwd", 404),
        ("//[", 404),
    ],
)
def test_only_the_page_and_its_photographs_can_be_fetched(
    server: Server, path: str, code: int
) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path)
    assert connection.getresponse().status == code


def test_a_malformed_request_is_refused_with_one_sentence(server: Server, picture: bytes) -> None:
    def raw(text: str) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(text.encode())
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(1 << 16), b""))

    start = "POST /look HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
    assert b" 411 " in raw(start + "\r\n")
    assert b" 411 " in raw(start + f"Content-Length: {'9' * 5000}\r\n\r\n")
    assert b" 411 " in raw(start + "Content-Length: -1\r\n\r\n")
    assert b"The upload is incomplete" in raw(start + "Content-Length: 10\r\n\r\n12345")
    assert b" 421 " in raw("GET / HTTP/1.1\r\n\r\n")
    assert b"text/plain" in raw("BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert post(server, picture, path="elsewhere").status_code == 404


def test_an_internal_error_is_shown_in_the_terminal_and_the_server_continues(
    server: Server,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(web_server, "inspect_image", fail)
        answer = post(server, picture)
    assert answer.status_code == 500 and "out of order" not in answer.text
    assert post(server, picture).status_code == 200
    assert "RuntimeError: out of order" in capfd.readouterr().err


def test_concurrent_requests_get_their_own_responses(server: Server, photos_folder: Path) -> None:
    files = sorted((photos_folder / "val").rglob("0000.jpg"))[:6]
    pictures = [file.read_bytes() for file in files]
    one_by_one = [post(server, data).content for data in pictures]
    assert len(set(one_by_one)) == 6
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda data: post(server, data).content, pictures)) == one_by_one


def test_names_from_a_model_are_escaped(net: TrainedModel, picture: bytes) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    recipe = replace(net.model.recipe, name=evil)
    model = net.model
    old, model.recipe = model.recipe, recipe
    try:
        session = ModelSession(
            replace(net, classes=tuple(f"{evil}\n{i}" for i in range(16))), views=1
        )
        page = session.page("nonce").decode()
    finally:
        model.recipe = old
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    answer = session.inspect(picture)
    head = json.loads(answer[4 : 4 + int.from_bytes(answer[:4], "little")])
    assert head["guesses"][0]["name"].startswith(evil + "\\n")  # the page inserts it as text


@pytest.mark.parametrize(
    ("host", "shown", "stranger"),
    [
        ("127.0.0.1", "127.0.0.1", 421),
        ("localhost", "127.0.0.1", 421),
        ("0.0.0.0", "localhost", 200),
    ],
)
def test_other_addresses_are_accepted_only_when_listening_on_all_of_them(
    net: TrainedModel, host: str, shown: str, stranger: int
) -> None:
    with Server(host, 0) as server:
        assert server.address == f"http://{shown}:{server.port}/"
        for name in ("localhost", "127.0.0.1", "::1"):
            assert server.accepts_host(name)
        for name in ("elsewhere.example", "", None):
            assert not server.accepts_host(name)
        assert server.accepts_host("192.0.2.1") == (stranger == 200)


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("127.0.0.1", "IN USE", r"port=\d+: is in use; choose another, or port=0"),
        (
            "no.such.host.invalid",
            "0",
            "host=no.such.host.invalid: is not an address",
        ),
        ("192.0.2.1", "0", "host=192.0.2.1: is not an address of this machine"),
        ("a" * 70, "0", "host=a*: is not an address of this machine"),
        ("127.0.0.1", "65536", "port=65536: must be at least 0 and at most 65535"),
        ("127.0.0.1", "-1", "port=-1: must be at least 0"),
        ("127.0.0.1", "0", "checkpoint=nowhere: "),
    ],
)
def test_a_mistake_in_the_settings_is_reported_with_a_remedy(
    server: Server, tmp_path: Path, host: str, port: str, line: str
) -> None:
    port = port.replace("IN USE", str(server.port))
    words = [f"host={host}", f"port={port}", "checkpoint=nowhere", "device=cpu"]

    def start() -> None:
        serve.run(compose_config("serve", ServeConfig, words)[0], tmp_path)

    with pytest.raises(ConfigError, match=f"^{line}"):
        start()


def test_an_image_that_takes_long_to_decode_does_not_keep_others_waiting(
    server: Server, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, decoding = b"slow", threading.Event()

    def decode(data: bytes, size: int) -> Any:
        if data == slow:
            assert decoding.wait(20)
            raise ValueError("slow")
        return stored_pixels(data, size)

    monkeypatch.setattr(web_server, "stored_pixels", decode)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, server, slow)
        assert post(server, picture).status_code == 200
        decoding.set()
        assert waiting.result().status_code == 422


def test_more_uploads_than_are_held_in_memory_wait_and_are_refused_in_the_end(
    server: Server, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "UPLOAD_S", 0.2)
    for _ in range(web_server.MAX_UPLOADS):
        assert server.uploads.acquire(blocking=False)
    try:
        answer = post(server, picture)
    finally:
        for _ in range(web_server.MAX_UPLOADS):
            server.uploads.release()
    assert (answer.status_code, answer.text) == (503, "Too many images at once; try again.\n")
    assert post(server, picture).status_code == 200


@pytest.mark.parametrize(
    ("limit", "head"),
    [
        ("TIMEOUT_S", ""),
        ("TIMEOUT_S", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: "),
        ("UPLOAD_S", "POST /look HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
                     "Content-Length: 100000\r\n\r\n"),
        ("UPLOAD_S", "POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"),
    ],
    ids=["request line", "header", "upload", "refused upload"],
)  # fmt: skip
def test_a_request_that_drips_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, picture: bytes, limit: str, head: str
) -> None:
    monkeypatch.setattr(web_server, limit, 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode())
        sent = 0
        with suppress(OSError):  # the server closes the connection
            while sent < 100:
                sent += connection.send(b"a")
                time.sleep(0.05)
        assert sent < 100
    monkeypatch.undo()
    assert post(server, picture).status_code == 200


def test_more_connections_than_are_served_are_closed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        assert connection.recv(1) == b""
    monkeypatch.undo()
    assert requests.get(server.address, timeout=10).status_code == 200


def test_closing_does_not_wait_for_a_response_that_is_not_read(
    net: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "CLOSING_S", 0.2)
    monkeypatch.setattr(ModelSession, "page", lambda self, nonce: bytes(50_000_000))
    with serving(net, views=1) as server:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        connection.recv(1)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 10
    connection.close()
