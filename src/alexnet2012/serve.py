"""A page to drop a picture on: ``python -m alexnet2012.serve checkpoint=RUN``.

It shows what each tower makes of the picture, what crosses between them, and five guesses. One
process, the standard library's HTTP server, everything of the page in its first answer; what is
sent here is read as a picture and as nothing else.
"""

from __future__ import annotations

import errno
import re
import secrets
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import ServeConfig
from alexnet2012.config.schema import ConfigError
from alexnet2012.data.preparation.decode import square_jpeg
from alexnet2012.data.sources.photos import CLASSES, photograph
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.activations import describe_net, inspect_image, packed
from alexnet2012.inference.images import stored_pixels
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.utils.templates import page_template
from alexnet2012.utils.text import printable

MAX_UPLOAD_BYTES = 64 * 2**20
MAX_PASSED_OVER_BYTES = 4 * MAX_UPLOAD_BYTES  # of an upload that is refused
SILENCE_S = 30.0  # of a browser in the middle of a request, or between two
_PHOTO, _PHOTO_FORMAT = "/photos/", (256, 95)  # pixels a side, quality: as a store's usually are
_SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ModelSession:
    """A net, the page about it, and the photographs that the page offers."""

    def __init__(self, net: TrainedModel, views: int) -> None:
        self.net, self.views = net, views
        self.lock = threading.Lock()  # one net, and memory for one large picture
        self.about = describe_net(net, views) | {"max_upload_bytes": MAX_UPLOAD_BYTES}
        self.photos = {name: square_jpeg(photograph(name), *_PHOTO_FORMAT) for name in CLASSES}
        self.template = page_template("alexnet2012.inference.web", "serve.html.jinja")
        self.files = {
            kind: Markup(
                resources.files("alexnet2012.inference.web")
                .joinpath(f"serve.{kind}")
                .read_text("utf-8")
            )
            for kind in ("css", "js")
        }

    def page(self, nonce: str) -> bytes:
        given = {"net": self.about, "photos": list(self.photos), "nonce": nonce}
        return self.template.render(**given, **self.files).encode()

    def answer(self, data: bytes) -> bytes:
        """Raises ValueError: the bytes are no usable picture; says why."""
        with self.lock:
            pixels = stored_pixels(data, len(self.net.mean_image))
            return packed(inspect_image(self.net, pixels, self.views))


class Server(ThreadingHTTPServer):
    """Listens at an address; without a desk it does not answer yet.

    Raises:
        ConfigError: it cannot listen there.
    """

    allow_reuse_port = False
    daemon_threads = False  # the end of the program would find one in torch's code, and abort
    desk: ModelSession

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self._connections: set[Any] = set()
        try:
            kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = kind[0]
            super().__init__(kind[4], Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            raise _explained(error, host, port) from error

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the network for this machine's name

    @property
    def address(self) -> str:
        """Of the page, for a browser on this machine."""
        host = str(self.server_address[0])
        if ip_address(host).is_unspecified:
            host = "localhost"
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def is_here(self, name: str | None) -> bool:
        """Whether a browser that asked for this host may be answered.

        A page of somebody else's can have its own name point here; it cannot do so with an
        address, and ``localhost`` is nobody's to give away.
        """
        bound = str(self.server_address[0])
        if name in ("localhost", self.host.lower(), bound):
            return True
        try:
            return ip_address(name or "").is_loopback or ip_address(bound).is_unspecified
        except ValueError:
            return False

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """After what is being answered; nothing more is read."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], (ConnectionError, TimeoutError)
        ):  # the browser has gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET / is the page, GET /photos/NAME a picture, POST /look what the net makes of one."""

    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S
    server: Server
    unread_bytes = 0  # of what was sent with a request

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._is_addressed():
            return
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            policy = (
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
                "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'"
            )
            page = self.server.desk.page(nonce)
            self._send(page, "text/html; charset=utf-8", {"Content-Security-Policy": policy})
        elif photo := self.server.desk.photos.get(path.removeprefix(_PHOTO)):
            self._send(photo, "image/jpeg")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "There is only one page here: /")

    def do_POST(self) -> None:
        given = re.fullmatch(r"[0-9]{1,18}", self.headers.get("Content-Length", ""))
        self.unread_bytes = int(given[0]) if given else 0
        if not self._is_addressed():
            return
        if self.headers.get("Origin", "").partition("://")[2] != self.headers["Host"]:
            self.send_error(HTTPStatus.FORBIDDEN, "Pictures are taken from the page itself only")
        elif self.path != "/look":
            self.send_error(HTTPStatus.NOT_FOUND, "Pictures are looked at under /look")
        elif given is None:
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "The size of the picture is not given")
        elif self.unread_bytes > MAX_UPLOAD_BYTES:
            words = f"{self.unread_bytes:,} bytes are more than {MAX_UPLOAD_BYTES:,}"
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, words)
        else:
            size, self.unread_bytes = self.unread_bytes, 0
            data = self.rfile.read(size)
            if len(data) == size:
                self._look(data)
            else:
                self.send_error(HTTPStatus.BAD_REQUEST, "The picture did not arrive whole")

    def _look(self, data: bytes) -> None:
        try:
            found = self.server.desk.answer(data)
        except ValueError as error:
            reason = f"This cannot be used as a picture: {printable(str(error))}"
            self.send_error(HTTPStatus.UNPROCESSABLE_ENTITY, reason)
        except Exception:
            words = "The server met an error of its own; its terminal says which"
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, words)
            raise
        else:
            self._send(found, "application/octet-stream")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One sentence of plain text, and the end of the connection."""
        self.close_connection = True
        left = min(self.unread_bytes, MAX_PASSED_OVER_BYTES)
        while left and (part := self.rfile.read(min(left, 1 << 20))):
            left -= len(part)  # or a browser would see a broken connection and no answer
        sentence = f"{(message or HTTPStatus(code).phrase).rstrip('.')}.\n"
        headers = {"Connection": "close"}
        self._send(sentence.encode(), "text/plain; charset=utf-8", headers, code)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for what goes wrong."""

    def version_string(self) -> str:
        return "alexnet2012"

    def _is_addressed(self) -> bool:
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if self.server.is_here(name):
            return True
        words = f"This server does not go by that name; open {self.server.address}"
        self.send_error(HTTPStatus.MISDIRECTED_REQUEST, words)
        return False

    def _send(
        self,
        body: bytes,
        content_type: str,
        headers: dict[str, str] | None = None,
        code: int = HTTPStatus.OK,
    ) -> None:
        self.send_response(code)
        every = {"Content-Type": content_type, "Content-Length": str(len(body))}
        for name, value in {**every, **_SAFE_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _explained(error: OSError | UnicodeError, host: str, port: int) -> ConfigError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ConfigError("port", port, "is taken; use another, or port=0 for any that is free")
    if number == errno.EACCES:
        return ConfigError("port", port, "is not yours to open; use one from 1024 on")
    remedy = "is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all that it has"
    return ConfigError("host", host, remedy)


def run(config: ServeConfig, run_dir: Path) -> None:
    """Serve until a signal.

    Raises:
        ConfigError: a net that is not there, or an address that cannot be had.
    """
    reuse_memory()
    with Server(config.host, config.port) as server:
        net = load_trained(Path(config.checkpoint).expanduser(), config.device)
        server.desk = ModelSession(net, config.views)
        print(f"Open {server.address} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # how it is meant to end
            print()


def main() -> None:
    hydra_main("serve", ServeConfig, run)


if __name__ == "__main__":
    main()
