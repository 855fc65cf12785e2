"""interact.py as users run it: in a terminal, in a dumb terminal, in a pipe, and with mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pexpect
import pytest
import torch

import interact
from common.command import InputError
from common.source_code import SPECIAL_WORDS
from completion.complete import complete
from completion.engines.engine import Step
from completion.engines.load_engine import load_engine
from completion.engines.torch_engine import TorchEngine
from completion.terminal.commands import HELP
from model import GPTSingleHead

CONTEXT = 30_000


@pytest.fixture(scope="module")
def coder(project, base, tmp_path_factory):
    """A run folder whose model says ` x`, ` +` or a line break for ever, whatever the prompt."""
    folder = tmp_path_factory.mktemp("coder")
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": CONTEXT, "n_layer": 1}))
    model = GPTSingleHead(str(folder), special_words_to_add=SPECIAL_WORDS, from_scratch=True)
    with torch.no_grad():  # the last norm's output is all ones, so a token's logit is the sum of its embedding
        rows = model.gpt.get_input_embeddings().weight
        rows[:] = -1.0
        rows[[model.tokenize(text)[0] for text in (" x", " +", "\n")]] = 0.0
        model.gpt.transformer.ln_f.weight[:] = 0.0
        model.gpt.transformer.ln_f.bias[:] = 1.0
    run = project.folder / "model" / "coder"
    model.save(run / "0_GPTSingleHead")
    return run


class Terminal:
    """A program in a pseudo-terminal, and what it has written, without colours and cursor movements."""

    def __init__(self, project, *arguments, columns=80, **environment):
        environment = os.environ | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment
        environment.pop("COLUMNS", None)  # which some runners of tests set
        self.child = pexpect.spawn(
            sys.executable, ["interact.py", *map(str, arguments)], cwd=project.folder, env=environment,
            dimensions=(24, columns),
        )  # fmt: skip
        self.child.delaybeforesend = None
        self._raw, self.read = b"", 0

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\a]*\a", "", self._raw.decode("utf-8", "replace"))

    def expect(self, wanted, seconds=60):
        """Wait for a text after what was expected before; returns what came until then, this text included."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(wanted, self.read)) < 0:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.text[self.read :]!r}"
            try:
                self._raw += self.child.read_nonblocking(65536, timeout=0.1)
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                assert wanted in self.text[self.read :], f"ended without {wanted!r}: {self.text[self.read :]!r}"
        start, self.read = self.read, found + len(wanted)
        return self.text[start : self.read].replace("\r", "")

    def say(self, line, answer):
        """Enter a line when asked; returns what comes until `answer`."""
        self.expect(">>>")
        self.child.send(line + "\r")
        return self.expect(answer)

    def ends(self):
        self.child.expect(pexpect.EOF, timeout=60)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture(scope="module")
def terminals(project, coder, tmp_path_factory):
    """The programs of this file, started together: importing takes most of their time."""
    state = tmp_path_factory.mktemp("state")
    (state / "autocoder").mkdir()
    (state / "autocoder" / "history").write_text("\n# 2020-01-01\n+of_an_earlier_session = 1\n")
    (project.folder / "place.py").write_text("import os\n\n\ndef f(a):\n    return a\n", encoding="utf-8")
    (state / "prompt").write_bytes("# é\ndef f(a):\r\n".encode())
    piped = subprocess.Popen(
        [sys.executable, "interact.py", "--stop", "none", "--max_length", "50", "--seed", "4"], cwd=project.folder,
        stdin=(state / "prompt").open(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    as_json = subprocess.Popen(
        [sys.executable, "interact.py", "--model_path", coder / "0_GPTSingleHead", "--file", "place.py", "--line", "4",
         "--n", "3", "--seed", "5", "--max_length", "6", "--use_cuda", "--json"],
        cwd=project.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    programs = {
        "editing": Terminal(project, "--stop", "none", "--max_length", 20, XDG_STATE_HOME=str(state)),
        "dumb": Terminal(project, "--language", "python", "--max_length", 9, columns=40, TERM="dumb"),
        "piped": piped,
        "json": as_json,
        "state": state,
    }
    yield programs
    for name in ("editing", "dumb"):
        programs[name].child.close(force=True)
    for name in ("piped", "json"):
        programs[name].kill()


def test_a_conversation(terminals, coder, project):
    terminal = terminals["editing"]
    terminal.expect("Language, python or java [python]:")
    terminal.child.send("pascal\r")
    terminal.expect("Language, python or java [python]:")
    terminal.child.send("Python\r")
    assert "coder | python | n 1" in terminal.expect(":help lists the commands")  # the newest run, found by itself

    # A block is open, so Enter goes on to the next line; on an empty line it completes.
    terminal.expect(">>>")
    terminal.child.send("def f(x):\r")
    terminal.expect("...")
    terminal.child.send("y = x\r")
    terminal.child.send("\r")
    shown = terminal.expect("ended: length")
    assert "    y = x" in shown  # its indentation came by itself
    assert "20 tokens" in shown
    assert "the last line may be unfinished" in terminal.expect("unfinished]")
    saved = project.folder / "saved.py"
    terminal.say(f":save {saved}", "written")
    assert saved.read_text(encoding="utf-8").startswith("def f(x):\n    y = x")

    # Alt-Enter completes at once; a bracket keeps the input open.
    terminal.expect(">>>")
    terminal.child.send("z = (1,\r")
    terminal.expect("...")
    terminal.child.send("2\x1b\r")
    terminal.expect("ended: length")

    # Ctrl-C in the middle of a completion keeps what has been streamed.
    terminal.say(f":max_length {CONTEXT}", f"max_length {CONTEXT}")
    terminal.say("a =", "\na =")  # at the start of a line: not the echo of what was typed, but the completion's
    terminal.expect(" x")
    terminal.child.sendintr()
    streamed = terminal.expect("ended: interrupted")
    assert "stopped by Ctrl-C" in terminal.expect("unfinished]")
    terminal.say(f":save {saved}", "written")
    shown = "".join(streamed.replace("^C", "").split("[probability")[0].split())
    assert "".join(saved.read_text(encoding="utf-8").split()).endswith(shown)

    terminal.say(":max_length 7", "max_length 7")
    terminal.say(":continue", "7 tokens")
    assert "---" not in terminal.say(":n 2", "n 2")
    terminal.say("b =", "--- 1 of 2: probability")
    terminal.expect(">>>")
    terminal.child.send("\t")  # on an empty line: the next candidate, and after the last the first again
    terminal.expect("--- 2 of 2: probability")
    second = terminal.expect(">>>")
    terminal.child.send(f":save {saved}\r")
    terminal.expect("written")
    kept = saved.read_text(encoding="utf-8")
    assert kept.startswith("b =")
    assert "".join(kept.split()) in "".join(second.split())  # what was shown last is what is kept
    terminal.say(":next", "--- 1 of 2: probability")
    terminal.say(":continue 2", "--- 1 of 2: probability")
    terminal.say(":temperature 0.0", "\ntemperature 0\r")
    java = saved.with_suffix(".java")
    java.write_text("int f() {\n", encoding="utf-8")
    assert "language java" in terminal.say(f":load {java}", "7 tokens")  # its name says the language
    assert "language python" in terminal.say(f":load {saved}", "7 tokens")
    literal = "def g():\n    return '<cursor>'\n\n\nx ="  # in a file these are characters like all others
    saved.write_text(literal, encoding="utf-8")
    terminal.say(f":load {saved}", "7 tokens")
    terminal.say(f":save {saved}", "written")
    assert saved.read_text(encoding="utf-8").startswith(literal)
    terminal.say("d =<cursor> + e", "ignored]")
    terminal.say(":continue", "ignored]")  # the code after the cursor stays in view
    terminal.say(f":save {saved}", "written")
    assert re.fullmatch(r"d =[ x+\n]* \+ e\n", saved.read_text(encoding="utf-8"))
    terminal.say(":lang java", "language java")
    assert ":continue" in terminal.say(":help", "exit ")
    assert ":continue" in terminal.say(":", "exit ")
    terminal.say("change_lang", "Language, python or java")
    terminal.child.send("\r")
    terminal.expect("language python")

    for mistake, answer in {
        ":n": "n 2",
        ":n zero": ":n zero: must be a whole number",
        ":n 0": ":n 0: must be at least 1",
        ":stop soon": ":stop soon: must be one of block, blank, line, none",
        ":lang c": ":lang takes python or java",
        ":continue 9": ":continue 9: choose a candidate from 1 to 1",
        ":next": "no other candidate to show",
        ":load": ":load needs the name of a file",
        ":load nowhere.py": "nowhere.py: No such file or directory",
        " :load ~nosuchuser/x.py": "~nosuchuser/x.py: No such file or directory",  # and a command after a blank is one
        ":nonsense": ":nonsense: no such command",
        f":save {project.folder}": f"{project.folder}: not a regular file",
    }.items():
        terminal.say(mistake, answer)

    # Ctrl-Z leaves no trace, and :help can be read in twenty columns.
    terminal.expect(">>>")
    terminal.child.send("\x1a")
    terminal.child.kill(signal.SIGCONT)
    terminal.child.setwinsize(24, 20)
    terminal.child.send(":help\r")
    terminal.expect("exit")
    assert "^Z" not in terminal.text

    # Nothing entered, a dropped line and bytes that are no text: it asks again. Forty columns are enough.
    terminal.child.setwinsize(24, 40)
    terminal.expect(">>>")
    terminal.child.send("\r")
    terminal.expect(">>>")
    terminal.child.send("dropped = 1\x03")
    terminal.expect(">>>")
    terminal.child.send(b"caf\xe9 = 1\x1b\r")
    terminal.expect("not UTF-8")
    terminal.say("c = 1", "ended: length")
    said = terminal.say(":help", "exit ")
    assert max(map(len, said[said.index("Type code") :].split("\n"))) <= 40
    assert "".join(HELP.split()).startswith("".join(said[said.index("Type code") :].split()))  # no word is cut

    terminal.expect(">>>")
    terminal.child.send("\x12earlier")  # Ctrl-R searches the history, here that of another session
    terminal.expect("of_an_earlier_session")
    terminal.child.send("\x07\x15:te\t")  # Tab completes a command's name
    terminal.expect("mperature")
    terminal.child.send("\x15\x04")
    assert terminal.ends() == 0
    history = (terminals["state"] / "autocoder" / "history").read_text(encoding="utf-8")
    assert "+def f(x):\n+    y = x" in history
    assert "Traceback" not in terminal.text


def test_a_dumb_terminal_gets_plain_lines(terminals):
    terminal = terminals["dumb"]
    assert "stop block\nType code" in terminal.expect("exit ends.")  # 40 columns: broken between words
    terminal.expect(">>>")
    terminal.child.send(b"caf\xe9\n")
    terminal.expect("not UTF-8")
    terminal.say("", ">>>")
    terminal.child.send("def f(x):\n")
    terminal.expect("ended: ")
    terminal.say(":n 0", ":n 0: must be at least 1")
    terminal.say("exit", "exit")
    assert terminal.ends() == 0
    assert b"\x1b" not in terminal._raw


def test_a_pipe_gets_the_completion_and_nothing_else(terminals, coder):
    output, said = terminals["piped"].communicate(timeout=120)
    expected = complete(load_engine(str(coder)), "# é\ndef f(a):\n", stop="none", max_new_tokens=50, seed=4)[0]
    assert output.decode() == expected.text + "\n"
    assert said.decode().splitlines() == [
        "note: stopped after 50 tokens (--max_length): the last line may be unfinished"
    ]


def test_json_at_a_place_in_a_file(terminals, coder):
    output, said = terminals["json"].communicate(timeout=120)
    expected = complete(
        load_engine(str(coder)), "import os\n\n\ndef f(a):", num_return_sequences=3, max_new_tokens=6, seed=5
    )
    candidates = json.loads(output)
    assert [c["text"] for c in candidates] == [c.text for c in expected]
    assert [c["probability"] for c in candidates] == pytest.approx([c.probability for c in expected])
    assert {"tokens", "mean_log_prob", "stop_reason", "parses", "prompt_tokens_dropped"} < set(candidates[0])
    assert said.decode().startswith("note: --use_cuda, but no GPU was found")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", " "], "--prompt: empty"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature -1: must be at least 0"),
        (["--prompt", "x", "--n", "many"], "--n"),
        (["--prompt", "x", "--stop", "soon"], "--stop"),
        (["--prompt", "x", "--model_path", "no/such/folder"], "no/such/folder: no such folder"),
        (["--prompt", b"caf\xe9"], "not UTF-8"),
        (["--prompt", "x", "--file", "place.py"], "--prompt and --file"),
        (["--line", "3"], "--line needs --file"),
        (["--file", "nowhere.py"], "nowhere.py: No such file or directory"),
        (["--file", "latin.py"], "latin.py:2: not UTF-8"),
        (["--file", "model.py", "--line", "9999"], "model.py: has lines 1 to"),
        ([], "standard input: empty"),
        (["--nonsense"], "--nonsense"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(project, arguments, said):
    (project.folder / "latin.py").write_bytes(b"x = 1\n# caf\xe9\n")
    done = project.run("interact.py", *arguments, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "\ufffd[2J\ufffd"), (False, "\x1b[2J\x07")])
@pytest.mark.parametrize("flags", [{}, {"num_return_sequences": 2, "temperature": 1.0}])
def test_a_terminal_gets_no_control_characters(model, monkeypatch, capsys, is_terminal, shown, flags):
    class Scripted:
        name, context_length, vocabulary = "scripted", 100, TorchEngine(model).vocabulary

        def stream(self, prompts, options, over):
            for token in self.vocabulary.encode("\x1b[2J\x07x"):
                for candidate in range(options.candidates):
                    yield Step(candidate, token, -1.0)

    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal, raising=False)
    interact.print_completions(Scripted(), "", "", interact.Config(prompt="x", stop="none", **flags))
    assert f"{shown}x\n" in capsys.readouterr().out


def save_as_of_2020(model, base, folder):
    """Torch tensors with buffers that today's GPT-2 has not, and a vocabulary in the files of GPT-2's old tokenizer."""
    state = {name: tensor.clone() for name, tensor in model.gpt.state_dict().items()}
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model.gpt.config.to_json_file(folder / "config.json")
    vocabulary = json.loads((base / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"} | SPECIAL_WORDS
    for name, content in {
        "vocab.json": vocabulary["vocab"],
        "added_tokens.json": {word: model.control_id(word.strip("<>")) for word in ("<pad>", "<python>", "<java>")},
        "special_tokens_map.json": names,
        "tokenizer_config.json": {"do_lower_case": False, "max_len": 1024, "init_inputs": []},
        "gpt_sh_config.json": {"max_seq_length": 100, "do_lower_case": False},
    }.items():
        (folder / name).write_text(json.dumps(content))


def test_a_checkpoint_of_2020_loads(base, model, tmp_path, project):
    model.eval()
    save_as_of_2020(model, base, tmp_path)
    done = project.run(
        "interact.py", "--model_path", tmp_path, "--prompt", "def f(x):", "--json", "--precision", "fp32",
        "--temperature", 0, "--max_length", 9, "--stop", "none",
    )  # fmt: skip
    expected = complete(TorchEngine(model), "def f(x):", temperature=0, max_new_tokens=9, stop="none")[0]
    assert json.loads(done.stdout)[0]["tokens"] == expected.tokens
    assert done.stderr.startswith("note: stopped after 9 tokens")  # and no report about buffers that nobody misses
    loaded = GPTSingleHead.load(tmp_path)
    loaded.save(tmp_path / "again")
    for copy in (loaded, GPTSingleHead.load(tmp_path / "again")):
        assert copy.max_seq_length == 100
        assert [copy.control_id(word) for word in ("python", "java")] == [
            model.control_id(word) for word in ("python", "java")
        ]
        assert copy.tokenizer.pad_token == "<pad>"
        for text in ("<python> x", "x = '<java><pad>'  # <|endoftext|>"):  # in a text they are text
            assert copy.tokenize(text) == model.tokenize(text)


def test_a_model_without_all_its_weights_is_refused(base, model, tmp_path):
    save_as_of_2020(model, base, tmp_path)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save({name: state[name] for name in state if "h.1.mlp.c_fc" not in name}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"weights are missing, such as transformer\.h\.1\.mlp\.c_fc\.bias"):
        GPTSingleHead.load(tmp_path)
