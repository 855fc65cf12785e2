"""A server in front of llama.cpp's, for what editors ask at a cursor: /infill, which it turns into /completion.

llama.cpp asks with the code behind the cursor last, which a model trained here learns long after the other order
(training/fim.py), and has a word go on behind its half, which any model would rather begin anew.
"""

import json
import os
import re
import select
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from completion.engines.llama_engine import ANY, grammar, literal
from completion.infill import read_infill
from completion.tokens import Vocabulary, decodable

# Of the tokens that begin with half a word, those with the smallest ids, which vocabularies give to frequent ones. Each
# more costs time: with all 2,717 that begin with ` c`, Qwen needed 1.7 s more for an answer, with 200 0.15 s.
FREQUENT = 128
LARGEST_REQUEST = 64 << 20  # bytes; an editor sends some 100 kB


class InfillRelay(ThreadingTCPServer):
    """Listens, and hands each request on to llama.cpp's server.

    Args:
        address: host and port to listen on.
        upstream: host and port of llama.cpp's server.
        vocabulary: the model's.
        context: most tokens around the cursor that the model is shown.
    Raises:
        OSError: nothing can listen there.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # where it would let another program take the port
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], upstream: tuple[str, int], vocabulary: Vocabulary, context: int):
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        self.upstream, self.vocabulary, self.context = upstream, vocabulary, context
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # which a client that goes away leaves behind
            super().handle_error(request, client_address)

    def completion(self, infill: dict) -> tuple[str, dict, str]:
        """The path and the request that ask for what this one to /infill does, and what its answer begins with.

        That is the end of the prompt, half a word perhaps, which is written again (completion/prompt.py); a grammar
        holds the answer to it. Of the prompt's last line alone, since a client's stop word may be the line break.
        Pieces of other files are left to llama.cpp, which knows how a model wants them, but for a model trained here.

        Raises:
            KeyError, TypeError, AttributeError: it is no such request; llama.cpp says what is missing.
        """
        vocabulary = self.vocabulary
        if infill.get("input_extra") and not vocabulary.suffix_first:
            return "/infill", infill, ""
        prefix, suffix = infill["input_prefix"] + infill.get("prompt", ""), infill["input_suffix"]
        language = guess_language(prefix + suffix)
        prompt = read_infill(vocabulary, vocabulary.fim_words, prefix, suffix, language, self.context, 0)
        before, line_break, end = prompt.beginning.text.rpartition(b"\n")
        before, again = vocabulary.spell(before + line_break), end.decode()
        stops = any(word in again for word in infill.get("stop", []))
        if not again or before is None or stops or infill.get("stream") or "grammar" in infill:
            return "/completion", infill | {"prompt": [*prompt.ids, *prompt.beginning.exact]}, ""
        if before:
            rule = f"root ::= {literal(end)} {ANY}"
        else:
            frequent = sorted(vocabulary.beginning_with(end))[:FREQUENT]
            rule = grammar(prompt.beginning, [id for id in frequent if decodable(vocabulary.bytes_of(id))], ANY)
        request = infill | {"prompt": [*prompt.ids, *before], "grammar": rule}
        if request.get("n_predict", -1) > 0:
            request["n_predict"] += len(prompt.beginning.exact)
        return "/completion", request, again


class _Handler(BaseHTTPRequestHandler):
    server: InfillRelay
    protocol_version = "HTTP/1.1"  # else curl's `Expect: 100-continue` is not answered, and curl waits for a second
    timeout = 600  # seconds without a byte from the client

    def answer(self) -> None:
        self.close_connection = True
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST or "Transfer-Encoding" in self.headers:
            self.send_error(413, f"send the length of the request, at most {LARGEST_REQUEST} bytes")
            return
        path, body, again = self.path, self.rfile.read(int(length)), ""
        if self.command == "POST" and path == "/infill":
            try:
                path, request, again = self.server.completion(json.loads(body))
                body = json.dumps(request).encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                pass  # llama.cpp refuses it in its own words
        for name in ("Content-Length", "Connection", "Expect"):
            del self.headers[name]
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = f"{self.command} {path} HTTP/1.1\r\n{fields}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(self.server.upstream) as upstream:
            upstream.sendall(head.encode("latin-1") + body)
            pieces = self._pieces(upstream)
            for piece in [without(again, b"".join(pieces))] if again else pieces:
                self.connection.sendall(piece)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer

    def _pieces(self, upstream: socket.socket) -> Iterator[bytes]:
        """The answer as it comes, until it ends or the client goes away; to leave ends the work on it."""
        watched = [upstream, self.connection]
        while True:
            ready = select.select(watched, [], [])[0]
            if self.connection in ready:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    return
                watched.remove(self.connection)  # a second request, which finds this connection closed
            if upstream in ready:
                piece = upstream.recv(65536)
                if not piece:
                    return
                yield piece

    def log_message(self, *_: object) -> None:
        pass


def guess_language(text: str) -> str:
    """Java or Python, which editors do not say. Right for 98 of 100 pieces of 40 lines of TheAlgorithms, of either."""
    lines = [line for line in map(str.rstrip, text.splitlines()) if line]
    return "java" if sum(line.endswith((";", "{", "}")) for line in lines) > len(lines) / 10 else "python"


def without(beginning: str, answer: bytes) -> bytes:
    """An answer of llama.cpp's, as it came, whose content does not begin with this."""
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        found = json.loads(body)
        found["content"] = found["content"][len(beginning) :]
    except (ValueError, KeyError, TypeError):  # an error, or cut short
        return answer
    body = json.dumps(found, separators=(",", ":")).encode()  # llama.vim looks for `"content":"`
    head = re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>%d" % len(body), head)
    return head + b"\r\n\r\n" + body
