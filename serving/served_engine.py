"""The engine of serve.py: llama.cpp's server, which this process asks over HTTP, as does the relay."""

import copy
import io
import json
import secrets
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPResponse
from pathlib import Path

from completion.engines.engine import Step
from completion.engines.llama_engine import LlamaEngine
from completion.engines.llama_server import own_signals, set_threads
from completion.prompt import Prompt
from completion.settings import CompletionSettings

REQUESTS_AT_ONCE = 4
ENDPOINT = "/v1/completions"


class ServedEngine(LlamaEngine):
    """A LlamaEngine for many clients at once. The work for a client ends as soon as that client goes away.

    Args:
        folder: of a saved model.
        kind: how its weights are stored: q8_0 or f16.
        model_name: what clients are told that the model is called.
        context: most tokens of all requests that are answered at the same time.
    Raises:
        CannotConvert, ImportError, InputError: as `LlamaEngine`.
    """

    def __init__(self, folder: Path, kind: str, model_name: str, context: int):
        self.model_name = model_name
        self.timings: dict[str, float] = {}
        self._client: socket.socket | None = None
        self._key = secrets.token_hex(32)
        self._context = context
        super().__init__(folder, kind)
        self.context_length = min(2048, self._context // 2)  # of a long file /infill shows the model this much

    def for_client(self, client: socket.socket) -> "ServedEngine":
        """The same engine, for one request of this client; `timings` are this request's."""
        engine = copy.copy(self)
        engine._client, engine.timings = client, {}
        return engine

    def request(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> HTTPResponse:
        """Ask llama.cpp's server. Closing the answer ends the work on it.

        Raises:
            OSError: the client is gone.
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\nConnection: close\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        upstream = socket.create_connection(self._address)
        upstream.sendall(head.encode("latin-1") + body)
        answer = HTTPResponse(_Watched(upstream, self._client), method=method)
        answer.begin()
        return answer

    def without_paths(self, text: bytes) -> bytes:
        """An answer of llama.cpp's that says the model's name where it said where its file is."""
        path, name = (json.dumps(word)[1:-1].encode() for word in (str(self._file), self.model_name))
        return text.replace(path, name)

    def stream(self, prompts: Sequence[Prompt], options: CompletionSettings, over: set[int]) -> Iterator[Step]:
        """See `Engine.stream`."""
        self.timings = {}
        return super().stream(prompts, options, over)

    def _serve(self, room: int, sequences: int) -> None:
        """Start the server, once, with room for all requests."""
        if self._server:
            return
        self._context = min(self._context, self.context_length)
        params = self._library.CommonParams()
        params.model.path, params.model_alias = str(self._file), {self.model_name}
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [self._key]
        params.ui = params.endpoint_slots = params.warmup = params.fit_params = False
        params.n_ctx, params.n_parallel, params.kv_unified = self._context, REQUESTS_AT_ONCE, True
        params.n_cache_reuse = 32  # an editor's next request has lost some lines of the last one's beginning
        params.cache_ram_mib = 0  # else prompts of earlier requests are kept, up to 8 GiB of them
        set_threads(params, self._file)
        params.verbosity = 0
        with own_signals():
            self._server = self._library.Server(params)
        self._address = ("127.0.0.1", int(self._server.listening_address.rpartition(":")[2]))

    def _ask(self, request: dict, read: Callable[[dict], bool]) -> None:
        request = request | {"stream": True, "cache_prompt": True, "timings_per_token": True}
        with self.request("POST", ENDPOINT, json.dumps(request).encode()) as answer:
            if answer.status != 200:
                raise RuntimeError(f"llama.cpp: {answer.read().decode(errors='replace')}")
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[len("data: ") :])
                if "error" in chunk:
                    raise RuntimeError(f"llama.cpp: {chunk['error']['message']}")
                # The first request of several reads the prompt, and the last one writes the text.
                first = {name: value for name, value in self.timings.items() if not name.startswith("predicted")}
                self.timings = chunk.get("timings", {}) | first
                if read(chunk["choices"][0]):
                    return


class _Watched(io.RawIOBase):
    """What llama.cpp's server sends; reading it fails as soon as the client is gone."""

    def __init__(self, upstream: socket.socket, client: socket.socket | None):
        self._upstream, self._client = upstream, client

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            ready = select.select([self._upstream, *([self._client] if self._client else [])], [], [])[0]
            if self._client in ready:
                if not self._client.recv(1, socket.MSG_PEEK):
                    raise ConnectionAbortedError
                self._client = None  # it has sent more than its request, which is left unread
            if self._upstream in ready:
                return self._upstream.recv_into(buffer)

    def close(self) -> None:
        self._upstream.close()
        super().close()
