"""The engine of serve.py: llama.cpp's server, to which this process sends HTTP requests, as the relay does."""

import contextlib
import copy
import io
import json
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from itertools import takewhile
from pathlib import Path

from completion.engines.llama_engine import LlamaEngine
from completion.engines.llama_server import start_server

REQUESTS_AT_ONCE = 4
SIMILAR = 0.1  # a slot knows a prompt if it has read this share of its beginning (llama.cpp's slot_prompt_similarity)
PATIENCE_S = 0.05  # how long a request waits for the slot that knows its prompt
ENDPOINT = "/v1/completions"


class ServedEngine(LlamaEngine):
    """A LlamaEngine for many clients at once. The work for a client ends as soon as that client goes away.

    Args:
        folder, kind: as for `LlamaEngine`.
        model_name: the model's name for clients.
        context: the most tokens of all requests together that are answered at the same time.
    Raises:
        CannotConvert, ImportError, InputError: as `LlamaEngine`.
    """

    def __init__(self, folder: Path, kind: str, model_name: str, context: int):
        self.model_name = model_name
        self.timings: dict[str, float] = {}
        self._client: socket.socket | None = None
        self._key = secrets.token_hex(32)
        self._context = context
        self._slots = Slots(REQUESTS_AT_ONCE)
        super().__init__(folder, kind)
        self.context_length = min(2048, self._context // 2)  # the most that /infill reads of a long file

    def for_client(self, client: socket.socket) -> "ServedEngine":
        """Return the same engine for one request of this client, with its own `timings`."""
        engine = copy.copy(self)
        engine._client, engine.timings = client, {}
        return engine

    def request(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> HTTPResponse:
        """Send a request to llama.cpp's server. The server stops working on it when the answer is closed.

        Raises:
            OSError: the client has gone away.
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
        """Replace the path of the model's file in an answer of llama.cpp by the model's name."""
        path, name = (json.dumps(word)[1:-1].encode() for word in (str(self._file), self.model_name))
        return text.replace(path, name)

    def _prepare(self, length: int, sequences: int) -> None:
        """Start the server, once, with room for all requests."""
        if self._server:
            return
        self._context = min(self._context, self.context_length)
        self._server = start_server(
            self._library,
            self._file,
            model_alias={self.model_name},
            hostnames=["127.0.0.1"],
            port=0,
            api_keys=[self._key],
            n_ctx=self._context,
            n_parallel=REQUESTS_AT_ONCE,
            kv_unified=True,
            n_cache_reuse=32,  # an editor's next request often lacks some first lines of the last one
        )
        self._address = ("127.0.0.1", int(self._server.listening_address.rpartition(":")[2]))

    def _ask(self, request: dict, read: Callable[[dict], bool]) -> None:
        request = request | {"stream": True, "cache_prompt": True, "timings_per_token": True}
        with contextlib.ExitStack() as used:
            if request.get("n", 1) == 1:  # for several candidates, llama.cpp takes several slots
                request["id_slot"] = used.enter_context(self._slots.take(request["prompt"]))
            answer = used.enter_context(self.request("POST", ENDPOINT, json.dumps(request).encode()))
            if answer.status != 200:
                raise RuntimeError(f"llama.cpp: {answer.read().decode(errors='replace')}")
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[len("data: ") :])
                if "error" in chunk:
                    raise RuntimeError(f"llama.cpp: {chunk['error']['message']}")
                # Several requests make one answer. The first one reads the prompt, and the last one writes the text.
                first = {name: value for name, value in self.timings.items() if not name.startswith("predicted")}
                self.timings = chunk.get("timings", {}) | first
                if read(chunk["choices"][0]):
                    return


class Slots:
    """Chooses a slot of llama.cpp's server for each request. Each slot keeps the KV cache of its last prompt.

    llama.cpp itself chooses among the free slots. While somebody types fast, the slot that knows the prompt is still
    busy for some milliseconds with the last request, which the editor has given up. Another slot would have to read the
    whole prompt, so a request waits for the right one.
    """

    def __init__(self, number: int):
        self._prompts: list[list[int]] = [[] for _ in range(number)]  # token ids that each slot has read last
        self._used_at, self._running = [0.0] * number, [0] * number  # times, and numbers of requests
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, prompt: list[int]) -> Iterator[int]:
        """Yield the number of the slot for a prompt."""
        with self._changed:
            known = [_common(prompt, other) for other in self._prompts]
            slot = known.index(max(known))
            is_known = known[slot] > SIMILAR * len(prompt)
            if is_known:
                self._changed.wait_for(lambda: not self._running[slot], PATIENCE_S)
            if not is_known or self._running[slot]:  # take the one that was not used for longest
                slot = min(range(len(known)), key=lambda n: (self._running[n], self._used_at[n]))
            self._prompts[slot], self._used_at[slot] = prompt, time.monotonic()
            self._running[slot] += 1
        try:
            yield slot
        finally:
            with self._changed:
                self._running[slot] -= 1
                self._changed.notify_all()


def _common(one: list[int], other: list[int]) -> int:
    """Return how many tokens at the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class _Watched(io.RawIOBase):
    """What llama.cpp's server sends. Reading it fails as soon as the client has gone away."""

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
                self._client = None  # it has sent more than its request; that is ignored
            if self._upstream in ready:
                return self._upstream.recv_into(buffer)

    def close(self) -> None:
        self._upstream.close()
        super().close()
