"""HTTP server of the page that shows a model's activations and predictions for an image.

One process, on the standard library's HTTP server. The page is self-contained, and uploads are
decoded as images and used for nothing else.
"""

from __future__ import annotations

import errno
import io
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from ipaddress import ip_address
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup

from alexnet2012.config.schema import ConfigError
from alexnet2012.data.preparation.decode import square_jpeg
from alexnet2012.data.sources.photos import CLASSES, photograph
from alexnet2012.inference.activations import describe_model, inspect_image, pack_inspection
from alexnet2012.inference.images import stored_pixels
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.utils.templates import page_template
from alexnet2012.utils.text import printable

MAX_UPLOAD_BYTES = 64 * 2**20
MAX_CONNECTIONS = 64  # more are closed at once
MAX_UPLOADS = 8  # at a time, each in memory; more wait
MAX_DECODING = 2
UPLOAD_S = 60.0  # for a whole upload, and for its turn
MAX_DISCARDED_BYTES = 4 * MAX_UPLOAD_BYTES  # read and discarded of a refused upload
CLOSING_S = 5.0
TIMEOUT_S = 30.0  # for the next request of a connection with its headers, and for an answer
_PHOTO, _PHOTO_FORMAT = "/photos/", (256, 95)  # pixels a side, JPEG quality: a store's defaults
_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ModelSession:
    """A model with its page and the sample photographs on it."""

    def __init__(self, trained: TrainedModel, views: int) -> None:
        self.trained, self.views = trained, views
        # These bound the memory. An image that takes long to decode does not keep others waiting.
        self.decoding = threading.BoundedSemaphore(MAX_DECODING)
        self.lock = threading.Lock()  # of the model
        self.description = describe_model(trained, views) | {"max_upload_bytes": MAX_UPLOAD_BYTES}
        self.photos = {name: square_jpeg(photograph(name), *_PHOTO_FORMAT) for name in CLASSES}
        self.template = page_template("alexnet2012.inference.web", "serve.html.jinja")
        folder = resources.files("alexnet2012.inference.web")
        self.assets = {
            kind: Markup(folder.joinpath(f"serve.{kind}").read_text("utf-8"))
            for kind in ("css", "js")
        }

    def page(self, nonce: str) -> bytes:
        variables = {"model": self.description, "photos": list(self.photos), "nonce": nonce}
        return self.template.render(**variables, **self.assets).encode()

    def inspect(self, data: bytes) -> bytes:
        """The packed :class:`Inspection` of an image file."""
        with self.decoding:
            pixels = stored_pixels(data, len(self.trained.mean_image))
        with self.lock:
            return pack_inspection(inspect_image(self.trained, pixels, self.views))


class Server(ThreadingHTTPServer):
    """Listens at an address; ``session`` must be set before requests are served."""

    allow_reuse_port = False
    daemon_threads = False  # at exit a daemon thread may be inside torch, which aborts the process
    session: ModelSession

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.uploads = threading.BoundedSemaphore(MAX_UPLOADS)
        self._connections: set[Any] = set()
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, *_, address = infos[0]
            super().__init__(address, Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            raise _bind_error(error, host, port) from error

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's looks up the host name over the network

    @property
    def address(self) -> str:
        """URL of the page for a browser on this machine."""
        host = str(self.server_address[0])
        if ip_address(host).is_unspecified:
            host = "localhost"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def accepts_host(self, name: str | None) -> bool:
        """Whether to answer a request with this host name, which prevents DNS rebinding."""
        # A foreign page can point its own domain name at this machine, but no IP address.
        bound = str(self.server_address[0])
        if name in ("localhost", self.host.lower(), bound):
            return True
        try:
            return ip_address(name or "").is_loopback or ip_address(bound).is_unspecified
        except ValueError:
            return False

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop reading from all connections, finish the current responses, and close.

        Responses that are not read within ``CLOSING_S`` are cut off.
        """
        deadline = time.monotonic() + CLOSING_S
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            for connection in list(self._connections):
                with suppress(OSError):
                    connection.shutdown(how)
            while self._connections and time.monotonic() < deadline:
                time.sleep(0.02)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Reader(socket.SocketIO):
    """Reads from a connection until ``deadline``; a socket's timeout begins anew at every byte."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, "rb")
        self.connection, self.deadline = connection, 0.0

    def readinto(self, buffer: Any) -> int | None:
        self.connection.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            return super().readinto(buffer)
        finally:
            self.connection.settimeout(TIMEOUT_S)


class Handler(BaseHTTPRequestHandler):
    """GET / is the page, GET /photos/NAME a photograph; POST /look inspects an image."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    server: Server
    unread_bytes = 0  # of the request body

    def setup(self) -> None:
        super().setup()
        self.reader = _Reader(self.connection)
        self.rfile = io.BufferedReader(self.reader)

    def handle_one_request(self) -> None:
        self._allow(TIMEOUT_S)
        super().handle_one_request()

    def _allow(self, seconds: float) -> None:
        """Raise TimeoutError from reads that end later than in ``seconds``."""
        self.reader.deadline = time.monotonic() + seconds

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._check_host():
            return
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            policy = (
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
                "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'"
            )
            headers = {"Content-Security-Policy": policy}
            self._send(self.server.session.page(nonce), "text/html; charset=utf-8", headers)
        elif photo := self.server.session.photos.get(path.removeprefix(_PHOTO)):
            self._send(photo, "image/jpeg")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "Not found; the page is at /")

    def do_POST(self) -> None:
        length = re.fullmatch(r"[0-9]{1,18}", self.headers.get("Content-Length", ""))
        self.unread_bytes = int(length[0]) if length else 0
        if not self._check_host():
            return
        if self.headers.get("Origin", "").partition("://")[2] != self.headers["Host"]:
            self.send_error(HTTPStatus.FORBIDDEN, "Images are accepted only from the page itself")
        elif self.path != "/look":
            self.send_error(HTTPStatus.NOT_FOUND, "Not found; send images to /look")
        elif length is None:
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing or invalid")
        elif self.unread_bytes > MAX_UPLOAD_BYTES:
            message = f"{self.unread_bytes:,} bytes exceed the limit of {MAX_UPLOAD_BYTES:,}"
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        else:
            self._receive()

    def _receive(self) -> None:
        """Read the upload when it is its turn, and answer it."""
        if not self.server.uploads.acquire(timeout=UPLOAD_S):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "Too many images at once; try again")
            return
        try:
            self._allow(UPLOAD_S)
            data = bytearray()
            with suppress(TimeoutError):
                while chunk := self.rfile.read1(min(self.unread_bytes, 1 << 20)):
                    data += chunk
                    self.unread_bytes -= len(chunk)
            if self.unread_bytes:
                self.unread_bytes = 0
                self.send_error(HTTPStatus.BAD_REQUEST, "The upload is incomplete")
            else:
                self._inspect(bytes(data))
        finally:
            self.server.uploads.release()

    def _inspect(self, data: bytes) -> None:
        try:
            response = self.server.session.inspect(data)
        except ConfigError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, printable(str(error)))
        except ValueError as error:
            message = f"The image cannot be used: {printable(str(error))}"
            self.send_error(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        except Exception:
            message = "Internal error; see the server's terminal"
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, message)
            raise
        else:
            self._send(response, "application/octet-stream")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send one sentence of plain text, and close the connection."""
        self.close_connection = True
        remaining = min(self.unread_bytes, MAX_DISCARDED_BYTES)
        self._allow(UPLOAD_S)
        # If the upload is not read to its end, browsers report a lost connection, not this message.
        while remaining and (chunk := self.rfile.read(min(remaining, 1 << 20))):
            remaining -= len(chunk)
        sentence = f"{(message or HTTPStatus(code).phrase).rstrip('.')}.\n".encode()
        self._send(sentence, "text/plain; charset=utf-8", {"Connection": "close"}, code)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests: the terminal shows only errors."""

    def version_string(self) -> str:
        return "alexnet2012"

    def _check_host(self) -> bool:
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if self.server.accepts_host(name):
            return True
        message = f"Unknown host name; open {self.server.address}"
        self.send_error(HTTPStatus.MISDIRECTED_REQUEST, message)
        return False

    def _send(
        self, body: bytes, content_type: str, headers: Mapping[str, str] = {}, code: int = 200
    ) -> None:
        self.send_response(code)
        common = {"Content-Type": content_type, "Content-Length": str(len(body))}
        for name, value in {**common, **_SECURITY_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _bind_error(error: OSError | UnicodeError, host: str, port: int) -> ConfigError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ConfigError("port", port, "is in use; choose another, or port=0 for any free port")
    if number == errno.EACCES:
        return ConfigError("port", port, "needs root privileges; use a port of 1024 or above")
    remedy = "is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all its addresses"
    return ConfigError("host", host, remedy)
