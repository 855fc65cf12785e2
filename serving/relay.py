"""The server for clients. It refuses foreign requests, answers /infill itself, and passes the rest to llama.cpp."""

import hmac
import ipaddress
import os
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from urllib.parse import unquote

from common.command import InputError
from completion.repository.repository import Repository
from serving.infill_request import InfillRequest, to_json
from serving.served_engine import ServedEngine

LARGEST_REQUEST = 16 << 20  # bytes; an editor sends some 100 kB
ERROR_TYPES = {401: "authentication_error", 403: "permission_error"}


class Relay(ThreadingTCPServer):
    """A server that listens immediately, but answers only after `start` was called.

    Args:
        host, port: the address to listen on.
        key: clients must send it; empty: they need none.
    Raises:
        InputError: nothing can listen there.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows, another program could then take the port
    request_queue_size = 64

    def __init__(self, host: str, port: int, key: str):
        self.host, self.key = host, key
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), _Handler)
        except (OSError, ValueError) as error:  # a ValueError: the name is `..` or has 300 letters
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{host}:{port}: {reason}; choose another --host or --port") from None

    def start(self, engine: ServedEngine, repository: Repository, context_tokens: int) -> None:
        """Start to answer. /infill shows the model at most `context_tokens` tokens of other files."""
        self.engine, self.repository, self.context_tokens = engine, repository, context_tokens
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that leaves causes an OSError
            super().handle_error(request, client_address)

    def has_name(self, host: str) -> bool:
        """Whether the Host header contains an address, or a name that only this machine has.

        A web page can make its own name point to this machine (DNS rebinding). The browser then believes that this
        server belongs to the page, but the Host header still contains the page's name.
        """
        name = re.fullmatch(r"\[?([^][/@\s]+?)]?(:[0-9]*)?", host.lower())
        if name and name[1] in ("localhost", self.host.lower(), socket.gethostname().lower()):
            return True
        try:
            return bool(name and ipaddress.ip_address(name[1]))
        except ValueError:
            return False


class _Refused(Exception):
    """A request is refused. Arguments: the HTTP status, and what is wrong with the request."""


class _Handler(BaseHTTPRequestHandler):
    server: Relay
    protocol_version = "HTTP/1.1"  # with 1.0, curl waits a second for an answer to `Expect: 100-continue`
    timeout = 60  # seconds without a byte from the client

    def answer(self) -> None:
        self.close_connection = True
        try:
            body = self.read_body()
            self.check_client()
            engine = self.server.engine.for_client(self.connection)
            if (self.command, unquote(self.path.partition("?")[0])) == ("POST", "/infill"):
                self.infill(engine, body)
            else:
                self.pass_on(engine, body)
        except _Refused as error:
            self.send_error(*error.args)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer

    def read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            raise _Refused(411, "send the length of the request (Content-Length), not chunks")
        if not re.fullmatch("[0-9]+", length):
            raise _Refused(400, "Content-Length must be a number")
        if len(length) > 12 or int(length) > LARGEST_REQUEST:
            raise _Refused(413, f"a request may have at most {LARGEST_REQUEST} bytes")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            raise _Refused(408, "the request did not arrive in time") from None
        if len(body) < int(length):
            raise _Refused(400, "the request is shorter than its Content-Length")
        return body

    def check_client(self) -> None:
        """Refuse requests from other web pages, and clients without the key."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        host, key = self.headers.get("Host", ""), self.server.key.encode()
        own = origin in (None, f"http://{host}") and site in (None, "none", "same-origin")
        if not self.server.has_name(host) or not own:
            raise _Refused(403, "web pages of other addresses get no answer")
        is_browser = origin is not None or site is not None
        if is_browser and self.command == "POST" and self.headers.get_content_type() != "application/json":
            raise _Refused(415, "web pages must send application/json")
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("X-Api-Key", "")
        if key and self.path not in ("/health", "/v1/health") and not hmac.compare_digest(given.encode(), key):
            raise _Refused(401, "wrong or missing API key")

    def infill(self, engine: ServedEngine, body: bytes) -> None:
        try:
            request = InfillRequest(body)
            project = (self.server.repository, self.server.context_tokens)
            if request.stream:
                self.start(200, "text/event-stream")
                piece = {"index": 0, "tokens": [], "stop": False}
                rest = request.answer(
                    engine, *project, lambda text: self.send_event(to_json(piece | {"content": text}))
                )
                self.send_event(rest)
            else:
                self.send_whole(200, request.answer(engine, *project).encode())
        except InputError as error:
            raise _Refused(400, str(error)) from None
        except RuntimeError as error:  # from llama.cpp
            raise _Refused(500, str(error)) from None

    def pass_on(self, engine: ServedEngine, body: bytes) -> None:
        """Have llama.cpp answer."""
        content_type = " ".join(self.headers.get("Content-Type", "application/json").split())
        with engine.request(self.command, self.path, body, content_type) as response:
            content_type = response.headers.get("Content-Type", "")
            if content_type.startswith("text/event-stream"):
                self.start(response.status, content_type)
                while piece := response.read1(65536):
                    self.wfile.write(piece)
            else:
                self.send_whole(response.status, engine.without_paths(response.read()), content_type)

    def start(self, status: int, content_type: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Connection", "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_whole(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.start(status, content_type, len(body))
        self.wfile.write(body if self.command != "HEAD" else b"")

    def send_event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        kind = ERROR_TYPES.get(code, "invalid_request_error" if code < 500 else "server_error")
        error = {"code": code, "message": message or self.responses[code][0], "type": kind}
        self.send_whole(code, to_json({"error": error}).encode())

    def version_string(self) -> str:
        return "AutoCoder"

    def log_message(self, *_: object) -> None:
        pass
