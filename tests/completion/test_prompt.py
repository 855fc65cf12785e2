"""The end of a prompt that is generated again, with every kind of vocabulary; no space after it is lost."""

import pytest
from test_gguf import LLAMA, NEOX, byte_level, save_model, sentence_piece

from completion.complete import complete
from completion.engines.load_engine import load_engine
from completion.prompt import read_prompt
from completion.tokens import Vocabulary

KINDS = {"gpt-2": lambda: byte_level("gpt-2"), "qwen2": lambda: byte_level("qwen2"), "sentencepiece": sentence_piece}
PROMPTS = [
    "def f(x):", "def f(x):\n", "def f(x):\n    ", "def f(x):\r\n", "for i in ra", "\tif x:\n\t\t", "return  ",
    "# caf\u00e9", "# \u6f22", "x = '\U0001f600", "x.app", "import os\n\n\n",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_read_and_end_generated_again_are_together_the_prompt(kind):
    tokenizer = KINDS[kind]()
    vocabulary = Vocabulary(tokenizer, {})
    blank = " " if kind == "sentencepiece" else ""  # it puts a space before every text
    for text in PROMPTS:
        prompt = read_prompt(vocabulary, text, "python", 128, 16)
        read = b"".join(map(vocabulary.bytes_of, prompt.ids[len(vocabulary.start("python")) :]))
        assert (read + prompt.end.text).decode() == blank + text
        # In SentencePiece a line break or a rare character is bytes, which no longer token contains.
        assert prompt.end.text or (kind == "sentencepiece" and (text[-1] == "\n" or not text[-1].isascii()))
        if prompt.end.text:
            assert vocabulary.encode(text)[-1] in prompt.end.allowed(prompt.end.exact[:-1])
        for way in prompt.end.ways:
            assert prompt.end.text.startswith(b"".join(map(vocabulary.bytes_of, way)))


def test_a_line_break_that_belongs_to_a_sign_can_be_chosen():
    vocabulary = Vocabulary(byte_level("qwen2"), {})
    sign = next(iter(vocabulary.beginning_with(b"):\n")), None)
    assert sign is not None, "the vocabulary of this test has the token"
    assert sign in read_prompt(vocabulary, "def f(x):", "python", 128, 16).end.allowed(())


def test_after_a_part_of_a_word_only_fitting_tokens_are_allowed():
    """These spell all that is left, or are tokens that the tokenizer itself would choose."""
    vocabulary = Vocabulary(byte_level("gpt-2"), {})
    end = read_prompt(vocabulary, "x = retur", "python", 128, 16).end
    inner = {way[0] for way in end.ways if way}
    assert all(t in inner or vocabulary.bytes_of(t).startswith(end.text) for t in end.allowed(()))


@pytest.mark.parametrize("precision", ["f16", "fp32"])
@pytest.mark.parametrize("settings", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
def test_no_blank_is_lost_with_sentencepiece(settings, precision, tmp_path):
    save_model(tmp_path, settings, sentence_piece())
    engine = load_engine(str(tmp_path), precision)
    for prompt in ("def f(x):", "x = 1\n", "return  ", "return x"):
        given = read_prompt(engine.vocabulary, prompt, "python", 128, 8).end.text.decode()
        for seed in range(4):
            found = complete(engine, prompt, temperature=1.0, max_new_tokens=8, stop="none", seed=seed)[0]
            said = b"".join(map(engine.vocabulary.bytes_of, found.tokens)).decode(errors="replace")
            said, text = said.replace("\ufffd", ""), found.text.replace("\ufffd", "")  # bytes that are no character
            # The first token may spell the last of the prompt's end too.
            assert said.endswith(text)
            assert (given + text).endswith(said)
