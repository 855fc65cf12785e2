"""Which chunks of a project are shown, and which never."""

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from tokenizers import Tokenizer

from common.command import InputError
from completion.complete import complete, read_cursor
from completion.cursor import Cursor
from completion.engines.load_engine import load_engine
from completion.prompt import read_prompt
from completion.repository.chunks import Chunk, cut_chunks, words_of
from completion.repository.form import with_context
from completion.repository.repository import Repository
from completion.tokens import Vocabulary

BANK = """\
class BankAccount:
    def __init__(self, owner, openingBalance):
        self.owner = owner
        self.opening_balance = openingBalance

    def transfer_money(self, receiver, amount):
        self.withdraw(amount)
        receiver.deposit(amount)
"""
WEATHER = "def forecast(city, temperature):\n    return rainfall[city] / temperature\n"
CALLER = "from bank import BankAccount\n\naccount = BankAccount(owner, 10)\naccount.withdraw(amount)\naccount.transfer_"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bank.py").write_text(BANK)
    (tmp_path / "weather.py").write_text(WEATHER)
    return tmp_path


def shown(repository, prefix=CALLER, suffix="", path="", extra=(), max_tokens=500, **more):
    limits = {"max_tokens": max_tokens, "count_tokens": lambda chunk: len(chunk.text) // 4}
    found = repository.chunks_for(Cursor(prefix, suffix, path=path), extra, **limits, **more)
    return [chunk.path for chunk in found]


def test_chunks_are_all_the_lines_and_end_where_code_does():
    text = "".join(f"def f{i}():\n    x = {i}\n    y = x\n    return y\n\n" for i in range(20))
    chunks = cut_chunks("a.py", text)
    assert "".join(chunk.text for chunk in chunks) == text
    assert chunks[1].first_line == 1 + chunks[0].text.count("\n")
    assert all(chunk.text.lstrip().startswith("def") for chunk in chunks)
    assert cut_chunks("a.py", "\n\n# --\n") == []


def test_a_name_is_searched_for_in_every_spelling():
    assert words_of("parseHTTPHeader2") == ["parse", "http", "header", "2", "parsehttpheader2"]
    assert set(words_of("opening_balance")) >= set(words_of("openingBalance")[:2])
    assert words_of("größe") == ["größe"]


def test_what_resembles_the_code_is_shown_and_nothing_else(folder):
    repository = Repository(folder)
    assert shown(repository) == ["bank.py"]
    assert shown(repository, "import socket\nlisten_on_port(") == []
    assert shown(repository, max_tokens=10) == []


def test_the_file_that_is_completed_and_its_copies_are_hidden(folder):
    (folder / "copy.py").write_text(BANK)
    repository = Repository(folder)
    assert len(shown(repository)) == 1  # one of two equal chunks
    assert shown(repository, exclude=repository.copies_of(folder / "bank.py")) == []


def test_other_parts_of_the_file_are_shown_but_not_what_is_visible(folder):
    (folder / "long.py").write_text(BANK + "\n\n" + "x = 1\n" * 30 + CALLER)
    repository = Repository(folder)
    assert "long.py" in shown(repository, CALLER, "", "long.py")
    assert "long.py" not in shown(repository, (folder / "long.py").read_text(), "", "long.py")


def test_chunks_of_the_editor_are_candidates_too(folder):
    repository = Repository(folder)
    extra = Chunk("notes.py", 7, "account.transfer_money(receiver, amount)  # BankAccount of Ada\n")
    assert "notes.py" in shown(repository, extra=[extra])
    assert shown(repository, extra=[Chunk("other.py", 1, "colour = blue\n")]) == ["bank.py"]
    extra = [Chunk("bank.py", 1, BANK), Chunk("weather.py", 1, WEATHER)]
    assert shown(Repository(None), extra=extra) == ["bank.py"]  # of an editor alone
    assert shown(Repository(None)) == []


def test_an_editor_does_not_say_which_file_it_completes(folder):
    (folder / "caller.py").write_text(CALLER)
    assert shown(Repository(folder)) == ["bank.py"]


def test_files_are_read_again_and_ignored_ones_never(folder):
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / ".gitignore").write_text("secret.py\n")
    (folder / "secret.py").write_text(BANK)
    (folder / ".env").write_text(BANK)
    repository = Repository(folder)
    assert shown(repository) == ["bank.py"]
    (folder / "weather.py").write_text(BANK.replace("Ada", "Eve"))
    (folder / "bank.py").unlink()
    repository.refresh()
    assert shown(repository) == ["weather.py"]


def test_a_word_more_does_not_change_what_is_shown(folder):
    for number in range(8):
        (folder / f"bank{number}.py").write_text(BANK.replace("receiver", f"receiver{number}"))
    repository = Repository(folder)
    first = shown(repository, CALLER + "money(rec")
    assert shown(repository, CALLER + "money(receiver, amo", max_tokens=500) == first


def test_a_folder_without_source_code_is_refused_but_may_lose_its_last_file_later(tmp_path):
    with pytest.raises(InputError, match=r"no \.py or \.java file"):
        Repository(tmp_path)
    (tmp_path / "bank.py").write_text(BANK)
    with pytest.raises(InputError, match="no such folder"):
        Repository(tmp_path / "bank.py")
    repository = Repository(tmp_path)
    (tmp_path / "bank.py").unlink()
    repository.refresh()
    assert shown(repository) == []


def test_a_folder_with_the_name_of_a_known_source_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stdlib").mkdir()
    Path("stdlib", "bank.py").write_text(BANK)
    assert shown(Repository(Path("stdlib"))) == ["bank.py"]


CHUNKS = [Chunk("bank.py", 1, "class Bank:\n    pass\n"), Chunk("shop.py", 5, "class Shop:\n    pass")]


def read(vocabulary, prompt, room, chunks=CHUNKS, language="python"):
    """What the model reads, as text."""
    cursor = Cursor("", language=language, path="app/main.py", context=tuple(chunks))
    whole = with_context(prompt, vocabulary, cursor, room)
    return vocabulary._tokenizer.decode(whole.ids, skip_special_tokens=False)


def test_a_model_without_words_for_it_reads_comments_before_its_control_word():
    vocabulary = Vocabulary.load(ROOT / "pretrained" / "tiny")
    prompt = read_prompt(vocabulary, "x = Ba", "python", 256, 16)
    comments = "# bank.py\n# class Bank:\n#     pass\n\n# shop.py\n# class Shop:\n#     pass\n\n"
    assert read(vocabulary, prompt, 200) == f"{comments}<python>x ="
    assert read(vocabulary, prompt, 200, CHUNKS[:1], "java").startswith("// bank.py\n// class Bank:\n")
    assert read(vocabulary, prompt, 25) == f"{comments.partition('# shop')[0]}<python>x ="
    assert read(vocabulary, prompt, 5) == "<python>x ="


def test_a_model_with_words_for_it_is_given_the_chunks_in_these():
    tokenizer = Tokenizer.from_file(str(ROOT / "pretrained" / "tiny" / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|repo_name|>", "<|file_sep|>"])
    vocabulary = Vocabulary(tokenizer, {})
    prompt = read_prompt(vocabulary, "x = Ba", "python", 256, 16)
    files = "<|file_sep|>bank.py\nclass Bank:\n    pass\n<|file_sep|>shop.py\nclass Shop:\n    pass\n"
    assert read(vocabulary, prompt, 200) == f"<|repo_name|>project\n{files}<|file_sep|>app/main.py\n<python>x ="
    assert read(vocabulary, prompt, 200, []) == "<python>x ="


def test_the_prompt_loses_nothing_to_the_context():
    """Neither where it fills the model's context nor where a little is left."""
    engine = load_engine("tiny")
    asked = {"temperature": 0, "max_new_tokens": 8}
    long = "x = 1\n" * 400
    assert complete(engine, long, context=CHUNKS, **asked) == complete(engine, long, **asked)
    assert complete(engine, "class ", context=CHUNKS, **asked)[0].prompt_tokens_dropped == 0
    with_chunks = Cursor("class ", context=tuple(CHUNKS))
    assert read_cursor(engine, with_chunks, 8).ids != read_cursor(engine, Cursor("class "), 8).ids


def test_interact_says_what_the_model_saw(project, folder):
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / "main.py").write_text(CALLER)
    command = ("interact.py", "--model_path", "tiny", "--max_length", 4, "--verbose", "--file", folder / "main.py")
    assert "note: context: bank.py:1-8\n" in project.run(*command).stderr
    assert "note: context: none\n" in project.run(*command, "--context_tokens", 0).stderr
    assert "note: context: none\n" in project.run(*command, "--context_tokens", 30).stderr
    asked = ("interact.py", "--model_path", "tiny", "--max_length", 4, "--prompt", CALLER, "--verbose", "--repository")
    assert "note: context: bank.py:1-8\n" in project.run(*asked, folder).stderr
    for command in (asked, ("evaluate.py", "--infill", 1, "--repository")):  # no other command's flag is named
        assert project.fails(*command, folder / "absent").startswith(f"error: {folder / 'absent'}: no such folder")
    (folder / "empty").mkdir()
    assert "--source" not in project.fails(*asked, folder / "empty")
