"""Places in held-out files: which they are, what is filled in there, and what is kept of it."""

import gzip
import json
import math
import os

import pytest
import torch
from conftest import ROOT

from common.command import InputError
from completion.complete import complete
from completion.engines.torch_engine import vocabulary_of
from completion.prompt import Prompt, PromptEnd, read_prompt
from dataset.sources import SourceFile
from evaluation.infill import Answer, Place, compared, fill_in, infill_table, summarise, until_stopped
from evaluation.likelihood import load_measured, score_texts
from evaluation.places import KINDS, Span, choose_spans, read_places

JAVA = "class Shop {\n    int price(int count) {\n        return count * 3;\n    }\n}\n"


def test_spans_are_pieces_of_the_files_and_always_the_same():
    file = ROOT / "common" / "files.py"
    files = [SourceFile(file, "common", "files.py", "Python")]
    spans = choose_spans(files, 5, seed=1)
    assert spans == choose_spans(files, 5, seed=1) != choose_spans(files, 5, seed=2)
    assert [span.kind for span in spans] == [*KINDS] * 5
    text = file.read_text()
    for span in spans:
        assert span.prefix + span.middle + span.suffix in text
        if span.kind == "next line":
            assert span.prefix.endswith("\n") or not span.prefix
        if span.kind in ("next line", "rest of a line"):
            assert span.suffix.startswith("\n")
            assert "\n" not in span.middle
    with pytest.raises(InputError, match="no held-out file"):
        choose_spans([], 5)


def test_evaluate_compares_the_ways_at_the_same_places(project, tmp_path):
    output = tmp_path / "result.json"
    command = ("evaluate.py", "--model_path", "tiny", "--infill", 2, "--output", output)
    printed = project.run(*command).stdout
    result = json.loads(output.read_text())
    assert len(result["places"]) == 8
    ways = ["prefix", "prefix, context", "prefix, suffix", "prefix, suffix, context"]
    for place in result["places"]:
        assert list(place["answers"]) == ways
        own = place["span"]["path"]
        for answer in place["answers"].values():
            assert answer["bits"] > 0
            assert own not in {name.partition(":")[0] for name in answer["shown"]}
    of_kind = result["infill"]["next line"]
    assert of_kind["places"] == 2
    assert "prefix, suffix, context - prefix, suffix" in of_kind["differences"]
    assert "prefix, context minus prefix: exact" in printed
    without = json.loads(output.read_text()) if project.run(*command, "--context_tokens", 0) else {}
    assert list(without["places"][0]["answers"]) == ["prefix", "prefix, suffix"]


def test_a_dataset_of_java_alone_is_refused_in_a_line(project, tmp_path):
    for number in range(10):
        (tmp_path / f"Shop{number}.java").write_text(JAVA.replace("3", str(number)) * 4)
    names = ("--source", tmp_path, "--dataset_name", "java", "--tokenizer", "pretrained/tiny")
    project.run("dataset/convert.py", *names, "--stride", 4, "--segment_len", 30)
    refused = project.fails("evaluate.py", "--model_path", "tiny", "--infill", 1, "--dataset_name", "java")
    assert "dev holds no Python file" in refused


ROWS = [
    {"prompt": "a = 0", "metadata": {"task_id": "x/0", "ground_truth": "b = 1", "fpath_tuple": ["x", "y", "a.py"]}},
    {
        "prompt": "a = ",
        "groundtruth": "2",
        "right_context": "\nb = 3",
        "metadata": {"repository": "shop", "file": "A.java"},
        "crossfile_context": {"list": [{"filename": "B.java", "retrieved_chunk": "int b;\n", "score": 1.0}]},
    },
    {"task_id": "0", "prompt": "def f():\n", "suffix": "    return x\n", "canonical_solution": "    x = 1\n"},
]


def test_the_published_files_of_places_are_read(project, tmp_path):
    file = tmp_path / "places.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    repo, cross, human = read_places(file, 9)
    assert (repo.prefix, repo.middle, repo.suffix) == ("a = 0\n", "b = 1", "")
    assert (repo.repository, repo.path) == ("x", "y/a.py")
    assert (cross.middle, cross.cursor().language, cross.suffix) == ("2", "java", "\nb = 3")
    assert (cross.repository, cross.path) == ("shop", "A.java")
    assert cross.context[0].path == "B.java"
    assert (human.middle, human.suffix) == ("    x = 1\n", "    return x\n")
    assert (
        "next line, 2 places"
        in project.run("evaluate.py", "--model_path", "tiny", "--infill", 2, "--file_path", file).stdout
    )
    file.with_suffix(".gz").write_bytes(gzip.compress(file.read_bytes()))
    assert read_places(file.with_suffix(".gz"), 2) == [repo, cross]


def test_the_functions_of_published_repositories_are_measured_with_their_other_files(project, tmp_path):
    """The repository is chosen by its name in the row, and a place's own file is never shown."""
    bank = "class Bank:\n    def pay(self, amount):\n        self.paid += amount\n        return self.paid\n"
    for name, file in (("bank", "pay.py"), ("bank", "bank.py"), ("bank", "copy.py"), ("other", "bank.py")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text(bank if file != "pay.py" else bank.replace("+=", "-=") + "# pays\n")
    head, _, body = bank.partition("\n        self")
    metadata = {"ground_truth": f"        self{body}", "fpath_tuple": ["bank", "bank.py"]}
    places, output = tmp_path / "function_level.jsonl", tmp_path / "result.json"
    places.write_text(json.dumps({"prompt": head, "metadata": metadata}))
    flags = ("--model_path", "tiny", "--infill", 1, "--file_path", places, "--output", output)
    project.run("evaluate.py", *flags, "--repository", tmp_path)
    (place,) = json.loads(output.read_text())["places"]
    assert place["span"]["kind"] == "next lines"
    assert list(place["answers"]) == ["prefix", "prefix, context"]  # the row has no suffix
    assert place["answers"]["prefix, context"]["shown"] == ["pay.py:1"]
    refused = project.fails("evaluate.py", *flags, "--repository", tmp_path / "bank")
    assert "bank/bank/bank.py: no such file; name with --repository the folder that holds bank" in refused


def test_only_as_many_lines_as_the_correct_text_are_compared():
    row = Span("next lines", "a.py", "def f():\n", "    a = 1\n\n    return a\n", "", repository="x")
    for text, same in (
        ("\n  a = 1\n  return a\n  b", True),
        ("    a = 1\n", False),
        ("    a = 1\n    return b", False),
    ):
        found, wanted = compared(row, text)
        assert (found == wanted) == same


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"prompt": "a"}\n', "places.jsonl:1: needs a text"),
        (b'\n{"prompt": "a", "groundtruth": ""}\n', "places.jsonl:2: needs a text"),
        (b'{"prompt": 5, "groundtruth": "1"}\n', "places.jsonl:1: prompt is 5"),
        (b'{"prompt": "a", "groundtruth": "1", "metadata": {"fpath_tuple": [1]}}', "metadata.fpath_tuple.0 is 1"),
        (b"[" * 100_000, "places.jsonl:1: not JSON"),
        (b"\n", "places.jsonl: holds no place"),
        (gzip.compress(b"x" * 9, mtime=0)[:-5], "places.jsonl: not a whole gzip file"),
        (b"\xff", "places.jsonl: not UTF-8"),
        (None, "places.jsonl: not a regular file"),
    ],
)
def test_a_file_that_holds_no_places_is_refused(content, expected, project, tmp_path):
    file = tmp_path / "places.jsonl"
    os.mkfifo(file) if content is None else file.write_bytes(content)
    assert expected in project.fails("evaluate.py", "--infill", 2, "--file_path", file, timeout=60)


def place(path, exact, exact_with_context):
    span = Span("next line", path, "", "abcd", "", "here")
    ways = {"prefix": exact, "prefix, context": exact_with_context}
    answers = {name: Answer("abcd", right, 1.0 * right, 0.1, 4.0 - 2 * right, []) for name, right in ways.items()}
    return Place(span, answers)


def test_differences_are_paired():
    places = [place(f"{number}.py", number % 2 == 0, True) for number in range(20)]
    summary = summarise(places)["next line"]
    difference = summary["differences"]["prefix, context - prefix"]
    assert difference["exact_match"]["mean"] == 0.5
    low, high = difference["exact_match"]["interval"]
    assert 0 < low < 0.5 < high < 1
    assert difference["bits_per_byte"]["mean"] == pytest.approx(-1 / 3)
    assert summary["ways"]["prefix"]["bits_per_byte"] == pytest.approx(3 / 4)
    assert "exact +50.0 [" in infill_table({"next line": summary})


def test_what_is_done_is_kept_when_stopped(capsys):
    def places():
        yield place("a.py", True, True)
        raise KeyboardInterrupt

    assert len(until_stopped(places(), 5)) == 1
    assert capsys.readouterr().err == "stopped: 1 of 5 places are done\n"
    assert summarise([]) == {}


def test_bits_are_those_of_the_model_among_the_tokens_that_can_follow(model):
    vocabulary = vocabulary_of(model.eval())
    ids = vocabulary.encode("def add(a, b):\n    return")
    more = vocabulary.encode(" a + b")
    log_probs = model.gpt(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    expected = -sum(log_probs[place, token].item() for place, token in enumerate(more)) / math.log(2)
    plain = Prompt(ids, PromptEnd(vocabulary))
    healed = read_prompt(vocabulary, "def add(a, b):\n    retu", "python", 128, 8)
    assert healed.end.text.endswith(b"retu")
    first = model.gpt(torch.tensor([healed.ids])).logits[0, -1]
    allowed = healed.end.allowed(())
    (token,) = vocabulary.encode(" return")
    share = first[allowed].log_softmax(-1)[allowed.index(token)].item()
    scores = score_texts(model, [plain, healed], [" a + b", "rn"])  # in one batch, though one is longer
    assert [score.bits for score in scores] == pytest.approx([expected, -share / math.log(2)], rel=1e-4)


def test_the_last_token_may_spell_the_line_break_too():
    engine, model = load_measured(str(ROOT / "pretrained" / "tiny"), "fp32")
    vocabulary = engine.vocabulary
    ids = vocabulary.encode("x = 1")
    (line_break,) = vocabulary.encode("\n")
    both = [id for id in range(vocabulary.largest_id + 1) if vocabulary.bytes_of(id).startswith((b"\n\n", b"\n\r\n"))]
    assert both  # this tokenizer has tokens for several line breaks
    log_probs = model.gpt(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    alone, either = log_probs[line_break].item(), log_probs[[line_break, *both]].logsumexp(0).item()
    prompt = Prompt(ids, PromptEnd(vocabulary))
    for at_line_end, expected in ((False, alone), (True, either)):
        (score,) = score_texts(model, [prompt], ["\n"], at_line_end)
        assert score.bits == pytest.approx(-expected / math.log(2), rel=1e-4)


def test_a_text_is_the_first_choice_if_greedy_completion_writes_it():
    engine, model = load_measured(str(ROOT / "pretrained" / "tiny"), "fp32")
    prefixes = ["for number in ra", "import nump", "def add(a, b):\n    ret"]
    found = [complete(engine, prefix, temperature=0, stop="line", max_new_tokens=30)[0].text for prefix in prefixes]
    prompts = [read_prompt(engine.vocabulary, prefix, "python", 128, 8) for prefix in prefixes]
    assert all(score.first_choice for score in score_texts(model, prompts, found))
    assert not any(score.first_choice for score in score_texts(model, prompts, [text + "x" for text in found]))
    assert not any(score.first_choice for score in score_texts(model, prompts, [text[:-1] for text in found]))


def test_each_way_is_asked_with_what_it_may_see(model):
    from completion.engines.torch_engine import TorchEngine

    seen = []
    span = Span("next line", "a.py", "x = 1\n", "y = 2", "\nz = 3\n", "here")
    list(fill_in(TorchEngine(model.eval()), [span], lambda span, cursor: seen.append(cursor.suffix) or cursor))
    assert seen == ["", span.suffix]
