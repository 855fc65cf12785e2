"""serve.py as a real process: which clients it answers, with what text, what it refuses, and how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from completion.complete import complete
from completion.engines.load_engine import load_engine
from completion.repository.chunks import Chunk
from serving.served_engine import Slots

pytest.importorskip("xllamacpp", reason="serve.py needs xllamacpp")
KEY = "a-key-of-our-own"
ZOO = "zookeeper_budget = giraffes_fodder + zebras_fodder * animals_per_cage\n"


def start(*flags, model="tiny", **environment):
    command = [sys.executable, "-u", "serve.py", "--model_path", str(model), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port, folder = free_port(), tmp_path_factory.mktemp("repository")
    (folder / "zoo.py").write_text(ZOO)
    process = start("--port", port, "--repository", folder, AUTOCODER_API_KEY=KEY)
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
}


def test_completes_for_clients_with_the_key(port):
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
    """Ask for a long text, read its beginning and go away."""
    body = json.dumps(REQUEST | {"stream": True, "max_tokens": 3000, "ignore_eos": True} | request)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 200")


def test_two_clients_get_what_each_gets_alone(port):
    requests = [REQUEST | {"prompt": f"def {name}(items):\n    ", "max_tokens": 24} for name in ("first", "last")]
    alone = [json.loads(ask(port, "/v1/completions", request)[2])["choices"][0]["text"] for request in requests]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda request: ask(port, "/v1/completions", request)[2], requests))
    assert [json.loads(answer)["choices"][0]["text"] for answer in answers] == alone


def test_a_client_that_leaves_frees_its_place(port):
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


FOREIGN = (
    {"Host": "elsewhere.example"},  # DNS rebinding: a page whose name points at this computer
    {"Host": "127.0.0.1.elsewhere.example"},
    {"Host": "localhost/elsewhere.example"},
    {"Host": "localhost@elsewhere.example"},
    {"Host": ""},
    {"Origin": "http://elsewhere.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_addresses_get_no_answer(port, headers):
    for path, body in (("/health", None), ("/v1/completions", REQUEST), ("/infill", FILL_IN), ("/props", None)):
        status, answered, text = ask(port, path, body, **headers)
        assert (status, json.loads(text)["error"]["code"]) == (403, 403)
        assert "Access-Control-Allow-Origin" not in answered


def test_a_browser_has_to_send_json(port):
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert ask(port, "/infill", FILL_IN, **own, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(port, "/infill", FILL_IN, **own, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


def test_names_of_this_computer(port):
    for host in (f"localhost:{port}", "LOCALHOST", "192.168.1.5", f"[::1]:{port}", socket.gethostname()):
        assert ask(port, "/health", Host=host)[0] == 200


def test_the_model_sees_a_long_file_only_around_the_cursor(port):
    file = {"input_prefix": "x = 1\n" * 900, "prompt": "y = ", "input_suffix": "\nz = 3\n" * 300, "n_predict": 4}
    others = {"input_extra": [{"filename": "a.py", "text": "def f(x): return 3\n" * 300}]}
    for request in (file, file | others):
        status, _, text = ask(port, "/infill", request)
        assert status == 200
        assert json.loads(text)["tokens_evaluated"] < 512


PLACES = {
    "half a word": (FILL_IN["input_prefix"] + "enumera", FILL_IN["input_suffix"]),
    "the rest of the line": (
        "def read(path):\n    if not path.exists():\n        raise FileNot",
        "Error(path)\n    return path.read_text()\n\n\ndef write(path, text):\n    path.write_text(text)\n",
    ),
    "a bracket": ("def total(items):\n    return sum(", ")\n"),
    "a new line": ("import os\n\n\ndef names(folder):\n    found = []\n    ", "\n    return found\n"),
    "no suffix": ("def bubble_sort(items):\n", ""),
    "Java": ("class A {\n    int f(int a) {\n        return ", ";\n    }\n}\n"),
}


def fill_in(port, prefix, suffix, **request) -> str:
    """The text of an answer, streamed and whole."""
    request = {"input_prefix": prefix, "input_suffix": suffix, "temperature": 0, "n_predict": 48} | request
    status, _, text = ask(port, "/infill", request)
    assert status == 200
    assert '"content":"' in text  # llama.vim searches for this
    pieces = [
        json.loads(line[6:])
        for line in ask(port, "/infill", request | {"stream": True})[2].splitlines()
        if line.startswith("data: {")
    ]
    assert [piece["stop"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    whole = json.loads(text)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert whole["timings"]["predicted_n"] >= whole["tokens_predicted"]
    return whole["content"]


@pytest.fixture(scope="module")
def engine():
    return load_engine("tiny")


@pytest.mark.parametrize("place", PLACES)
def test_an_editor_gets_what_interact_shows(port, engine, place):
    prefix, suffix = PLACES[place]
    language = "java" if place == "Java" else "python"
    (wanted,) = complete(engine, prefix, language, suffix=suffix, temperature=0, max_new_tokens=48)
    assert fill_in(port, prefix, suffix) == wanted.text
    assert wanted.text.strip()


def test_a_model_trained_here_is_asked_in_the_order_that_it_has_learned(port, engine):
    prefix, suffix = PLACES["half a word"]
    engine.vocabulary.fim_rate = 0.0
    try:
        (other,) = complete(engine, prefix, suffix=suffix, temperature=0, max_new_tokens=48)
    finally:
        engine.vocabulary.fim_rate = 0.5
    assert fill_in(port, prefix, suffix) != other.text


def test_the_model_is_shown_the_project_and_what_the_editor_sends(port, engine):
    aviary = ZOO.replace("giraffes", "parrots").replace("zebras", "owls")
    chunks = [Chunk("aviary.py", 1, aviary), Chunk("zoo.py", 1, ZOO)]
    prefix, suffix = f"# {' '.join(re.findall('[a-z]+', aviary))}\nzookeeper_budget = ", "\n"
    texts = []
    for context in (chunks, chunks[1:], ()):
        texts += complete(engine, prefix, suffix=suffix, context=context, temperature=0, max_new_tokens=16)
    both, folder, nothing = (completion.text for completion in texts)
    assert both != folder != nothing != both
    assert fill_in(port, prefix, suffix, n_predict=16) == folder
    sent = {"filename": "/home/ada/aviary.py", "text": aviary}
    assert fill_in(port, prefix, suffix, n_predict=16, input_extra=[sent]) == both


def test_stop_words_and_time(port):
    prefix, suffix = PLACES["no suffix"]
    whole = fill_in(port, prefix, suffix)
    assert len(whole.splitlines()) > 1
    word = whole.splitlines()[1].split()[-1]
    assert fill_in(port, prefix, suffix, stop=["neither", word]) == whole[: whole.index(word)]
    short = fill_in(port, prefix, suffix, t_max_predict_ms=0.001)
    assert short
    assert short == whole.splitlines()[0]


def test_several_answers(port):
    status, _, text = ask(port, "/infill", FILL_IN | {"n_cmpl": 3, "temperature": 0.9, "seed": 1})
    assert status == 200
    assert len({answer["content"] for answer in json.loads(text)}) == len(json.loads(text)) > 1


def test_an_editor_may_ask_for_parts_of_the_answer(port):
    fields = {"response_fields": ["content", "timings/prompt_n", "nothing"]}
    found = json.loads(ask(port, "/infill", FILL_IN | fields)[2])
    assert list(found) == ["content", "timings/prompt_n"]
    assert found["content"]
    warm_up = FILL_IN | {"n_predict": 0, "samplers": [], "input_extra": [{"filename": "a.py", "text": "x = 1"}]}
    assert json.loads(ask(port, "/infill", warm_up)[2])["content"] == ""


def test_a_client_may_ask_before_it_sends_much(port):
    body = json.dumps(FILL_IN).encode()
    head = f"POST /infill HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nExpect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        assert client.recv(64).startswith(b"HTTP/1.1 200")


WRONG = (
    {"input_suffix": None},
    {"input_prefix": 1},
    {"prompt": ["x"]},
    {"input_extra": 5},
    {"input_extra": ["text"]},
    {"input_extra": [{"filename": "a.py"}]},
    {"input_extra": [{"filename": 3, "text": "x"}]},
    {"n_predict": -3},
    {"temperature": "warm"},
    {"temperature": 1e999},
    {"top_p": 0},
    {"n_cmpl": 7},
    {"n_cmpl": 2, "stream": True},
    {"stop": "\n"},
    {"response_fields": [3]},
    {"t_max_predict_ms": "1"},
)


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_request_is_refused(port, wrong):
    for stream in ({}, {"stream": True}):
        status, _, text = ask(port, "/infill", FILL_IN | stream | wrong)
        assert status == 400
        assert next(iter(wrong)) in json.loads(text)["error"]["message"]


def test_invalid_requests(port):
    assert ask(port, "/infill", FILL_IN, key="")[0] == 401
    assert ask(port, "/infill", ["x"])[0] == 400
    for body in ("{", "[" * 100_000, "9" * 5000, '"\xff"'):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/infill", body.encode("latin-1"), {"Authorization": f"Bearer {KEY}"})
        assert connection.getresponse().status == 400
    for status, headers in (
        (413, {"Content-Length": str(1 << 40)}),
        (413, {"Content-Length": "9" * 5000}),
        (400, {"Content-Length": "-1"}),
        (411, {"Transfer-Encoding": "chunked"}),
    ):
        assert ask(port, "/infill", **headers)[0] == status
    for nonsense in (b"nonsense\r\n\r\n", b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(nonsense)
            client.shutdown(socket.SHUT_WR)
            assert b'"code":400' in client.makefile("rb").read()


def test_other_ways_to_write_the_path(port):
    for path in ("/infill?x=1", "//infill", "/%69nfill"):
        answer = json.loads(ask(port, path, FILL_IN)[2])
        assert answer["content"] == json.loads(ask(port, "/infill", FILL_IN)[2])["content"]
        assert "id_slot" not in answer  # llama.cpp's own answers have it


def test_much_code(port):
    much = {"input_prefix": "x" * 3_000_000, "input_suffix": "\n" + "(\n" * 500_000}
    extra = [{"filename": "a\0\nb.py", "text": "x = 1\n" * 20_000}] * 40
    for request in (much, much | {"input_prefix": "(\n" * 500_000}, {"input_extra": extra}):
        assert ask(port, "/infill", FILL_IN | request)[0] == 200


def test_an_unusual_cursor(port):
    for prompt in ("", "    ", "s = '\"\\é😀", "x = 1\n", "\ud83d"):
        status, _, text = ask(port, "/infill", FILL_IN | {"prompt": prompt, "n_predict": 3})
        assert status == 200
        assert json.loads(text)["tokens_predicted"] <= 12
        assert prompt not in json.loads(text)["content"] or not prompt.strip()


def test_a_model_without_marker_words_says_so_and_is_as_safe(without_markers):
    port = free_port()
    process = start("--port", port, model=without_markers, AUTOCODER_API_KEY="")
    try:
        assert "does not see the code after the cursor" in process.stdout.readline() + process.stdout.readline()
        assert fill_in(port, "x = ", "\n") is not None
        assert ask(port, "/health", key="", Host="elsewhere.example")[0] == 403
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_what_it_does_not_show(port):
    assert ask(port, "/slots")[0] == 501  # what others ask
    assert ask(port, "/")[0] == 404
    for path in ("/props", "/v1/models", "/models", "/lora-adapters"):
        status, _, text = ask(port, path)
        assert status == 200
        assert "/autocoder" not in text  # the cache folder, where the model's file is
        assert str(Path.home()) not in text


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


def test_a_typed_character_waits_for_the_slot_that_knows_the_text_before_it(monkeypatch):
    monkeypatch.setattr("serving.served_engine.PATIENCE_S", 60)
    slots, text = Slots(2), list(range(100))
    with slots.take(text) as first, slots.take([7] * 100) as other:
        assert first != other
        with slots.take([8] * 100) as longest_unused:  # none is free
            assert longest_unused == first
    with slots.take([*text, 1]):
        pass
    with ThreadPoolExecutor(1) as pool:
        with slots.take([*text, 2]) as known:
            waiting = pool.submit(lambda: slots.take([*text, 2, 3]).__enter__())
            time.sleep(0.2)  # if it did not wait, it would take the other one
        assert waiting.result() == known


def refused(*flags, **environment) -> str:
    process = start(*flags, **environment)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert len(output.splitlines()) == 1
    return output


def test_refusals(port, tmp_path):
    assert "choose another --host or --port" in refused("--port", port)
    assert "--api_key FILE" in refused("--host", "0.0.0.0")
    assert "--api_key FILE" in refused("--host", "::")
    (tmp_path / "key").write_text(KEY)
    for host in ("..", "x" * 300, "no.such.name.invalid"):
        assert f"{host}:8012" in refused("--host", host, "--api_key", tmp_path / "key")
    (tmp_path / "empty").touch()
    assert "must hold a key" in refused("--api_key", tmp_path / "empty")
    assert "name a file that holds the key" in refused("--api_key", tmp_path / "none")
    assert "name a file that holds the key" in refused("--api_key", "/dev/zero")
    assert "no such folder" in refused("--port", free_port(), "--repository", tmp_path / "none")
    for key in ("two words", "a line\nbreak", "naïve"):
        assert "AUTOCODER_API_KEY: must hold a key" in refused(AUTOCODER_API_KEY=key)
    assert "--port" in refused("--port", 70000)
