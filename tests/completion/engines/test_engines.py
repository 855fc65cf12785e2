"""Which engine is chosen, what it imports, and that llama.cpp and PyTorch generate the same text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from common.command import InputError
from completion.complete import complete, complete_all
from completion.cursor import Cursor
from completion.engines.load_engine import load_engine
from completion.engines.torch_engine import TorchEngine
from completion.infill import read_infill

pytest.importorskip("xllamacpp", reason="llama.cpp completes on CPUs only where xllamacpp is installed")
TINY = str(ROOT / "pretrained" / "tiny")
PROMPTS = [
    "def fibonacci(n):\n    ",
    "import os\n\n\ndef list_fi",
    "class Stack:\n    def push(self, item):",
    "for i in ra",
]
CURSORS = list(map(Cursor, PROMPTS))


@pytest.fixture(scope="module")
def engines():
    return load_engine(TINY, "f16"), load_engine(TINY, "fp32")


def test_an_engine_that_is_not_used_ends():
    """It used to wait forever, because llama.cpp's server was deleted before its loop had started."""
    for _ in range(3):
        load_engine(TINY, "q8_0")


def test_llama_cpp_and_pytorch_write_the_same(engines):
    """They may differ only where two tokens are almost equally likely, because F16 rounds."""
    same = 0
    for prompt in PROMPTS:
        llama, torch = (complete(e, prompt, temperature=0, max_new_tokens=24, stop="none")[0] for e in engines)
        same += llama.text == torch.text
        assert llama.text[:8] == torch.text[:8]
        if llama.text == torch.text:
            assert llama.mean_log_prob == pytest.approx(torch.mean_log_prob, abs=0.02)
    assert same >= len(PROMPTS) - 1


def test_scores_do_not_depend_on_the_settings_of_the_sampling(engines):
    for engine in engines:
        greedy = complete(engine, PROMPTS[0], temperature=0, max_new_tokens=8, stop="none")[0]
        first = complete(engine, PROMPTS[0], temperature=0.01, top_p=0.5, max_new_tokens=8, stop="none", seed=1)[0]
        assert first.text == greedy.text
        assert first.mean_log_prob == pytest.approx(greedy.mean_log_prob, abs=1e-3)


def test_many_prompts_and_several_candidates(engines):
    settings = {"temperature": 0, "max_new_tokens": 12, "stop": "none"}
    together = dict(complete_all(engines[0], CURSORS, **settings))
    for place, prompt in enumerate(PROMPTS):
        assert together[place][0].text[:6] == complete(engines[0], prompt, **settings)[0].text[:6]
    greedy = complete(engines[0], PROMPTS[0], **settings)[0].text
    found = complete(engines[0], PROMPTS[0], temperature=1.0, num_return_sequences=4, max_new_tokens=12, stop="none")
    assert 1 < len(found) <= 4
    assert greedy in {completion.text for completion in found}


def test_random_numbers_follow_from_the_seed_of_a_prompt_alone(engines):
    settings = {"temperature": 1.0, "max_new_tokens": 8, "stop": "none"}
    for engine in engines:
        alone = dict(complete_all(engine, CURSORS[:1], seeds=[7], **settings))[0][0].text
        beside = dict(complete_all(engine, [CURSORS[1], *CURSORS[:1] * 2], seeds=[9, 7, 8], **settings))
        assert beside[1][0].text == alone != beside[2][0].text


def test_seeds_beside_each_other_share_no_candidate(engines):
    settings = {"temperature": 2.0, "top_p": 1.0, "num_return_sequences": 4, "max_new_tokens": 12, "stop": "none"}
    for engine in engines:
        first, again, other = ({c.text for c in complete(engine, PROMPTS[0], seed=s, **settings)} for s in (1, 1, 2))
        assert first == again
        assert len(first) == len(other) == 4
        assert len(first & other) == 1  # the greedy one


def test_the_end_of_a_prompt_is_generated_again(engines):
    for engine in engines:
        for prompt in ("for i in ra", "x = [1, 2,", "s = 'é", "if a:\r\n", "\tx", "print("):
            found = complete(engine, prompt, temperature=0, max_new_tokens=6, stop="none")[0]
            assert len(found.tokens) <= 6  # nothing of the prompt is counted or shown again
            assert not found.text.startswith(prompt[-2:] * 2)
    assert complete(engines[0], "for i in ra", temperature=0, max_new_tokens=4, stop="none")[0].text.startswith("nge(")


def test_neither_torch_nor_transformers_is_imported_on_a_cpu(project):
    code = (
        "import sys; from completion.engines.load_engine import load_engine; from completion.complete import complete\n"
        "complete(load_engine('tiny'), 'def f(', max_new_tokens=3)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_llama_cpp_cannot_run_is_left_to_pytorch(base, model, tmp_path, capsys):
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "silu"}))
    assert isinstance(load_engine(str(tmp_path)), TorchEngine)
    said = capsys.readouterr().err
    assert said.startswith("note: ")
    assert "llama.cpp cannot run it" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(InputError, match="--precision q8_0"):
        load_engine(str(tmp_path), "q8_0")


def test_the_server_inside_cannot_be_reached(engines):
    complete(engines[0], "x", max_new_tokens=2)
    listening = Path("/proc/self/net/tcp")
    if not listening.is_file():
        pytest.skip("needs /proc")
    own = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            assert fields[3] != "0A" or f"socket:[{fields[9]}]" not in own, "a port is open"


def test_a_folder_whose_cache_cannot_be_written_completes_all_the_same(tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "tiny")
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert complete(load_engine(str(tmp_path / "tiny")), "def f(", max_new_tokens=3, stop="none")[0].tokens


@pytest.fixture(scope="module")
def fim_folder(base, tmp_path_factory):
    """A random model that knows StarCoder's marker words."""
    import torch

    from common.source_code import SPECIAL_WORDS
    from model import GPTSingleHead
    from training.fim import learn_fim_words

    torch.manual_seed(0)
    model = GPTSingleHead(str(base), special_words_to_add=SPECIAL_WORDS, from_scratch=True)
    learn_fim_words(model)
    folder = tmp_path_factory.mktemp("fim")
    model.save(folder)
    return folder


def test_a_suffix_is_between_its_marker_words(fim_folder):
    engine = load_engine(str(fim_folder), "f16")
    vocabulary = engine.vocabulary
    before, after, middle = vocabulary.ids_of(vocabulary.fim_words)
    prefix, suffix = "def f(a):\n    retu", "\n\n\nprint(f(1))\n"
    prompt = read_infill(vocabulary, Cursor(prefix, suffix), 128, 9)
    ids = prompt.ids
    assert ids[:2] == [vocabulary.start("python")[0], before]
    assert [*ids[2 : ids.index(after)], *prompt.end.exact] == vocabulary.encode(prefix)
    assert prompt.end.text.strip() == b"retu"  # half a word, generated again as part of the middle
    assert ids[ids.index(after) + 1 : -1] == vocabulary.encode(suffix)
    assert ids[-1] == middle
    assert not {before, after, middle} - vocabulary.end_ids  # which end a completion
    vocabulary.fim_rate = 0.5  # as of a model trained here: the middle follows the prefix
    turned = read_infill(vocabulary, Cursor(prefix, suffix), 128, 9)
    kept = ids[2 : ids.index(after)]
    assert turned.ids == [*ids[:2], after, *vocabulary.encode(suffix), middle, *kept]
    assert turned.end == prompt.end
    assert complete(engine, prefix, suffix=suffix, max_new_tokens=9, temperature=1.0, stop="none", seed=1)


def test_a_long_file_keeps_the_lines_around_the_cursor(fim_folder):
    vocabulary = load_engine(str(fim_folder), "f16").vocabulary
    lines = [f"value_{number} = {number}\n" for number in range(100)]
    prompt = read_infill(vocabulary, Cursor("".join(lines), "".join(lines)), 128, 16)
    _, after, _ = vocabulary.ids_of(vocabulary.fim_words)
    place = prompt.ids.index(after)
    text = [b"".join(map(vocabulary.bytes_of, part)).decode() for part in (prompt.ids[:place], prompt.ids[place:])]
    assert "".join(lines).endswith(text[0] + prompt.end.text.decode())
    assert text[0].startswith("value_")  # whole lines
    assert "".join(lines).startswith(text[1]) and text[1].endswith("\n")
    assert len(text[0]) > 2 * len(text[1]) > 0
    assert len(prompt.ids) <= 128 - 16
    assert prompt.dropped > 0


def test_a_place_in_a_file_takes_the_rest_as_suffix(project, fim_folder, without_markers, tmp_path):
    file = tmp_path / "place.py"
    file.write_text("def f(a):\n    b = \n    return b\n")
    command = ("interact.py", "--file", file, "--line", 2, "--max_length", 5)
    assert "the code after the cursor is ignored" in project.run(*command, "--model_path", without_markers).stderr
    assert "ignored" not in project.run(*command, "--model_path", without_markers, "--no_infill").stderr
    assert "ignored" not in project.run(*command, "--model_path", fim_folder, "--column", 4).stderr
    assert "has 8 characters, not 9" in project.fails(*command, "--column", 9)
    assert "--suffix needs --prompt" in project.fails("interact.py", "--suffix", "x", "--file", file)


@pytest.mark.parametrize("stop", ["block", "line", "blank", "none"])
def test_the_pieces_that_are_shown_are_the_completion(engines, stop):
    for prompt in PROMPTS:
        for length in (3, 17, 60):
            pieces: list[str] = []
            settings = {"stop": stop, "max_new_tokens": length, "seed": 1}
            (found,) = complete(engines[0], prompt, on_text=pieces.append, **settings)
            assert "".join(pieces) == found.text
