"""What /infill becomes on its way to llama.cpp; tests/test_serve.py asks it over the network."""

import inspect
import json

import pytest

pytest.importorskip("xllamacpp", reason="serve.py needs xllamacpp")

from common.model_files import find_pretrained
from completion.tokens import Vocabulary
from serving.relay import InfillRelay

JAVA = "class A {\n    int f(int a) {\n        return "
PYTHON = {"input_prefix": inspect.getsource(json.dumps), "prompt": "    ret", "input_suffix": "\n"}


@pytest.fixture(scope="module")
def relay():
    with InfillRelay(("127.0.0.1", 0), ("127.0.0.1", 1), Vocabulary.load(find_pretrained("tiny")), 256) as relay:
        yield relay


@pytest.mark.parametrize(
    ("language", "request_"),
    [("java", {"input_prefix": JAVA, "input_suffix": ";\n    }\n}\n"}), ("python", PYTHON)],
)
def test_the_control_word_is_that_of_the_language(relay, language, request_):
    assert relay.completion(request_)[1]["prompt"][:1] == relay.vocabulary.start(language)


def test_pieces_of_other_files_are_left_to_llama_cpp_unless_the_model_is_ours(relay, monkeypatch):
    request = PYTHON | {"input_extra": [{"filename": "a.py", "text": "x = 1"}]}
    assert relay.completion(request)[0] == "/completion"
    monkeypatch.setattr(relay.vocabulary, "suffix_first", False)
    assert relay.completion(request) == ("/infill", request, "")


def test_half_a_word_is_left_for_the_answer_which_has_room_for_it(relay):
    path, request, again = relay.completion(PYTHON | {"n_predict": 9})
    assert path == "/completion"
    assert again.endswith("ret")
    assert request["n_predict"] > 9
    assert len(request["prompt"]) <= 256
    assert "n_predict" not in relay.completion(PYTHON)[1]
    (whole,) = relay.vocabulary.encode(" return")
    assert f"<[{whole}]>" in request["grammar"]
    for unsuited in ({"stream": True}, {"grammar": 'root ::= "x"'}, {"stop": ["e"]}):
        assert relay.completion(PYTHON | unsuited)[1].get("grammar") == unsuited.get("grammar")
