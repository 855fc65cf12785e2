"""serve.py as a real process: whom it answers, what it refuses, and how it ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("xllamacpp", reason="serve.py needs xllamacpp")
KEY = "a-key-of-our-own"


def start(*flags, **environment):
    command = [sys.executable, "-u", "serve.py", "--model_path", "tiny", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


@pytest.fixture(scope="module")
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    process = start("--port", number, AUTOCODER_API_KEY=KEY)
    assert f"http://127.0.0.1:{number}" in process.stdout.readline()
    yield number
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "stopped" in process.stdout.read()


def ask(port, path, body=None, key=KEY, **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


REQUEST = {"prompt": "def add(a, b):\n    return", "max_tokens": 8, "temperature": 0}


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


def test_pages_of_other_origins_get_no_leave(port):
    for path in ("/health", "/v1/completions"):
        _, headers, _ = ask(port, path, Origin="http://elsewhere.example")
        assert headers["Access-Control-Allow-Origin"] == f"http://127.0.0.1:{port}"


def test_a_model_without_marker_words_says_so(port):
    status, _, text = ask(port, "/infill", {"input_prefix": "x = ", "input_suffix": "\n"})
    assert status == 501
    assert "not supported" in text


def test_what_it_does_not_show(port):
    assert ask(port, "/slots")[0] == 501  # what others ask
    assert ask(port, "/")[0] == 404


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
