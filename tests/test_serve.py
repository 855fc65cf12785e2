"""serve.py as a real process: whom it answers, what it refuses, and how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from completion.complete import complete
from completion.engines.load_engine import load_engine

pytest.importorskip("xllamacpp", reason="serve.py needs xllamacpp")
KEY = "a-key-of-our-own"


def start(*flags, model="tiny", **environment):
    command = [sys.executable, "-u", "serve.py", "--model_path", str(model), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    port = free_port()
    process = start("--port", port, AUTOCODER_API_KEY=KEY)
    assert f"http://127.0.0.1:{port}" in process.stdout.readline()
    assert "llama.vim:" in process.stdout.readline()
    yield process, port
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    said = process.stdout.read()
    assert "stopped" in said
    assert "Traceback" not in said  # nor of the clients that went away


@pytest.fixture(scope="module")
def port(server):
    return server[1]


def ask(port, path, body=None, key=KEY, **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


REQUEST = {"prompt": "def add(a, b):\n    return", "max_tokens": 8, "temperature": 0}
FILL_IN = {
    "input_prefix": "def longest(words):\n    best = None\n    for index, word in ",
    "prompt": "enumera",
    "input_suffix": "\n        print(index, word)\n    return best\n",
    "temperature": 0,
    "n_predict": 12,
    "stop": ["\n"],
}


def test_completes_for_who_has_the_key(port):
    status, _, text = ask(port, "/v1/completions", REQUEST)
    assert status == 200
    assert json.loads(text)["choices"][0]["text"].strip()
    assert ask(port, "/v1/completions", REQUEST, key="")[0] == 401
    assert ask(port, "/v1/completions", REQUEST, key="another")[0] == 401


def test_streams(port):
    status, _, text = ask(port, "/v1/completions", REQUEST | {"stream": True})
    assert status == 200
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    whole = json.loads(ask(port, "/v1/completions", REQUEST)[2])["choices"][0]["text"]
    assert len(chunks) > 2
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


def leave_in_the_middle(port, path="/v1/completions", **request):
    """A client that asks for a long text, takes its beginning and goes away."""
    body = json.dumps(REQUEST | {"stream": True, "max_tokens": 3000, "ignore_eos": True} | request)
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 200")


def test_two_clients_get_what_each_gets_alone(port):
    requests = [REQUEST | {"prompt": f"def {name}(items):\n    ", "max_tokens": 24} for name in ("first", "last")]
    alone = [json.loads(ask(port, "/v1/completions", request)[2])["choices"][0]["text"] for request in requests]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda request: ask(port, "/v1/completions", request)[2], requests))
    assert [json.loads(answer)["choices"][0]["text"] for answer in answers] == alone


def test_who_leaves_frees_the_place(port):
    for _ in range(8):  # twice as many as are answered at once
        leave_in_the_middle(port)
        leave_in_the_middle(port, "/infill", **FILL_IN | {"n_predict": 3000, "stop": []})
    assert ask(port, "/v1/completions", REQUEST)[0] == 200


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow(server):
    process, port = server

    def mebibytes(requests: int) -> float:
        for number in range(requests):
            prompt = f"# {requests} {number}\n" * 10
            assert ask(port, "/v1/completions", REQUEST | {"prompt": prompt, "max_tokens": 2})[0] == 200
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    before = mebibytes(50)
    assert mebibytes(150) < before + 4


def test_pages_of_other_origins_get_no_leave(port):
    for path in ("/health", "/v1/completions"):
        _, headers, _ = ask(port, path, Origin="http://elsewhere.example")
        assert headers["Access-Control-Allow-Origin"] == f"http://127.0.0.1:{port}"


def test_of_a_long_file_the_model_sees_what_surrounds_the_cursor(port):
    file = {"input_prefix": "x = 1\n" * 900, "prompt": "y = ", "input_suffix": "\nz = 3\n" * 300, "n_predict": 4}
    others = {"input_extra": [{"filename": "a.py", "text": "def f(x): return 3\n" * 300}]}
    for request in (file, file | others):
        status, _, text = ask(port, "/infill", request)
        assert status == 200
        assert json.loads(text)["tokens_evaluated"] < 512


def test_a_model_trained_here_is_asked_in_the_order_that_it_has_learned(port):
    engine = load_engine("tiny")
    prefix = FILL_IN["input_prefix"] + FILL_IN["prompt"]
    (wanted,) = complete(engine, prefix, suffix=FILL_IN["input_suffix"], temperature=0, max_new_tokens=12, stop="line")
    engine.vocabulary.suffix_first = False
    (other,) = complete(engine, prefix, suffix=FILL_IN["input_suffix"], temperature=0, max_new_tokens=12, stop="line")
    status, _, text = ask(port, "/infill", FILL_IN)
    assert status == 200
    assert '"content":"' in text  # so llama.vim wants it
    assert json.loads(text)["content"] == wanted.text != other.text  # half a word is finished, and not begun anew
    assert wanted.text.startswith("te(")


def test_what_is_filled_in_streams(port):
    request = FILL_IN | {"prompt": "enumerate"}
    whole = json.loads(ask(port, "/infill", request)[2])["content"]
    text = ask(port, "/infill", request | {"stream": True})[2]
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert len(chunks) > 2
    assert "".join(chunk["content"] for chunk in chunks) == whole


def test_a_client_may_ask_before_it_sends_much(port):
    body = json.dumps(FILL_IN).encode()
    head = (
        f"POST /infill HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nExpect: 100-continue\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(f"{head}\r\n\r\n".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        assert client.recv(64).startswith(b"HTTP/1.1 200")


def test_an_unusual_request_to_fill_in(port):
    assert ask(port, "/infill", FILL_IN, key="")[0] == 401
    for wrong in (
        {"input_prefix": "x"},
        {"input_prefix": 1, "input_suffix": "\n"},
        ["x"],
        FILL_IN | {"input_suffix": None},
    ):
        status, _, text = ask(port, "/infill", wrong)
        assert status in (400, 500)
        assert json.loads(text)["error"]["message"]
    for prompt in ("", "    ", "s = '\"\\é😀", "x = 1\n"):
        status, _, text = ask(port, "/infill", FILL_IN | {"prompt": prompt, "n_predict": 3, "stop": []})
        assert status == 200
        assert 1 <= json.loads(text)["tokens_predicted"] <= 12
        assert prompt not in json.loads(text)["content"] or not prompt.strip()
    for headers in ({"Content-Length": str(1 << 40)}, {"Transfer-Encoding": "chunked"}):
        assert ask(port, "/infill", **headers)[0] == 413


def test_a_model_without_marker_words_says_so(without_markers):
    port = free_port()
    process = start("--port", port, model=without_markers, AUTOCODER_API_KEY="")
    try:
        assert "knows no marker words" in process.stdout.readline() + process.stdout.readline()
        status, _, text = ask(port, "/infill", {"input_prefix": "x = ", "input_suffix": "\n"}, key="")
        assert status == 501
        assert "not supported" in text
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_what_it_does_not_show(port):
    assert ask(port, "/slots")[0] == 501  # what others ask
    assert ask(port, "/")[0] == 404


def test_other_machines_with_a_key_until_ctrl_c(tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    port = free_port()
    process = start("--port", port, "--host", "0.0.0.0", "--api_key", tmp_path / "key")
    assert "must send the key" in process.stdout.readline()
    assert ask(port, "/v1/completions", REQUEST)[0] == 200
    assert ask(port, "/v1/completions", REQUEST, key="")[0] == 401
    leave_in_the_middle(port)
    process.send_signal(signal.SIGINT)
    assert "stopped" in process.communicate(timeout=20)[0]
    assert process.returncode == 0


def refused(*flags) -> str:
    process = start(*flags)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert len(output.splitlines()) == 1
    return output


def test_refusals(port, tmp_path):
    assert "choose another --host or --port" in refused("--port", port)
    assert "--api_key FILE" in refused("--host", "0.0.0.0")
    assert "--api_key FILE" in refused("--host", "::")
    (tmp_path / "empty").touch()
    assert "must hold a key" in refused("--api_key", tmp_path / "empty")
    assert "cannot be read" in refused("--api_key", tmp_path / "none")
    assert "--port" in refused("--port", 70000)
