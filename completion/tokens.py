"""What completion needs to know about a tokenizer. Needs neither torch nor transformers."""

import bisect
import json
from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.command import InputError
from common.json_files import read_json
from common.model_files import COMPLETE_COPY, FimWords, known_fim_words, read_config, read_tokenizer
from common.source_code import LANGUAGES

SETTING_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "gpt_sh_config.json")
SPACE = "▁"  # how SentencePiece spells a space


class Vocabulary:
    """A tokenizer that knows the bytes of each token; they do not depend on the tokens beside it.

    Args:
        tokenizer: as tokenizer.json describes it.
        settings: file name -> content, for the model's JSON files in SETTING_FILES. A missing file counts as empty.
        name: of the model, for the error.
    Raises:
        InputError: it is not known how this tokenizer's tokens become text.
    """

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, dict], name: str = "the model"):
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._spelling = _spelling_of(tokenizer, name)
        ours = settings.get("gpt_sh_config.json", {})
        self.fim_rate: float = ours.get("fim_rate", 0.0)  # 0 for models that were not trained here
        self._lower_case = ours.get("do_lower_case", False)
        words = [f"<{language}>" for language in LANGUAGES]
        self._control = {word: id for word in words if (id := tokenizer.token_to_id(word)) is not None}
        special = {id for id, token in self._added.items() if token.special}
        ends = _end_ids(tokenizer, settings)
        self.end_ids = frozenset(special | ends | set(self._control.values()))  # none of these is text
        self._start = self._begin(settings.get("tokenizer_config.json", {}))
        # The model reads this first if the prompt is empty and no token comes before every text.
        self.lone_start = sorted(ends)[:1] or sorted(special)[:1] or [0]

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Load the vocabulary of a model folder.

        Raises:
            InputError: the folder has no tokenizer.json, or a file is damaged.
        """
        tokenizer = read_tokenizer(folder)
        files = [folder / name for name in SETTING_FILES if (folder / name).is_file()]
        settings = {file.name: read_json(file, dict, COMPLETE_COPY) for file in files}
        return cls(tokenizer, settings, str(folder))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, and no others. A control word in the text is ordinary text."""
        self._tokenizer.encode_special_tokens = True
        return self._tokenizer.encode(text.lower() if self._lower_case else text, add_special_tokens=False).ids

    def start(self, language: str) -> list[int]:
        """Return the tokens before every text, as GPTSingleHead.start_ids does.

        They are those that the tokenizer itself adds, and the language's control word if the model has one.
        """
        word = f"<{language}>"
        return self._start + ([self._control[word]] if word in self._control else [])

    def ids_of(self, words: Iterable[str]) -> list[int | None]:
        """Return the ids of words that are single tokens; None for other words."""
        return [self._tokenizer.token_to_id(word) for word in words]

    @cached_property
    def fim_words(self) -> FimWords | None:
        """The marker words of this model's FIM prompts; None if the model does not know any."""
        return known_fim_words(self._tokenizer.token_to_id)

    def bytes_of(self, token: int) -> bytes:
        """Return what a token spells: nothing if the token ends a text or the tokenizer has no word for the id."""
        if token in self.end_ids or (word := self._tokenizer.id_to_token(token)) is None:
            return b""
        return word.encode() if token in self._added else self._spelling.read(word)

    def beginning_with(self, text: bytes) -> list[int]:
        """Return the tokens whose bytes begin with these; none if the tokenizer's kind does not tell."""
        if not (word := self._spelling.write(text)):
            return []
        first = bisect.bisect_left(self._words, word)
        return [
            id
            for found in takewhile(lambda other: other.startswith(word), self._words[first:])
            if (id := self._ids[found]) not in self.end_ids
        ]

    def spell(self, text: bytes) -> list[int] | None:
        """Return tokens that spell these bytes, each as long as possible; None if there are none."""
        ids = []
        while text:
            lengths = range(len(text), 0, -1)
            words = [(length, self._spelling.write(text[:length])) for length in lengths]
            words.append((1, f"<0x{text[0]:02X}>"))  # SentencePiece's token of a byte
            found = [(length, self._tokenizer.token_to_id(word)) for length, word in words if word]
            length, id = next(((length, id) for length, id in found if id is not None), (0, None))
            if id is None:
                return None
            ids.append(id)
            text = text[length:]
        return ids

    @cached_property
    def largest_id(self) -> int:
        return max(self._ids.values(), default=-1)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @cached_property
    def _words(self) -> list[str]:
        return sorted(self._ids)

    def _begin(self, config: dict) -> list[int]:
        if "add_bos_token" in config:  # for transformers this counts more than tokenizer.json
            bos = self._tokenizer.token_to_id(_word(config.get("bos_token"))) if config["add_bos_token"] else None
            return [] if bos is None else [bos]
        ids = self._tokenizer.encode("x").ids
        text = self._tokenizer.encode("x", add_special_tokens=False).ids
        places = range(len(ids) - len(text) + 1)
        return ids[: next((place for place in places if ids[place : place + len(text)] == text), 0)]


def context_length(folder: Path) -> int:
    """Return the most tokens that the saved model has positions for."""
    config = read_config(folder)
    return config.get("max_position_embeddings") or config["n_positions"]


def _word(entry: Any) -> str:
    """Return a token's text in tokenizer_config.json, where older files have a dictionary; empty if there is none."""
    entry = entry.get("content") if isinstance(entry, dict) else entry
    return (
        entry.encode(errors="replace").decode() if isinstance(entry, str) else ""
    )  # no token contains half a character


def _end_ids(tokenizer: Tokenizer, settings: dict[str, dict]) -> set[int]:
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        eos = settings.get(name, {}).get("eos_token_id")
        ends |= {id for id in (eos if isinstance(eos, list) else [eos]) if isinstance(id, int) and id >= 0}
    named = tokenizer.token_to_id(_word(settings.get("tokenizer_config.json", {}).get("eos_token")))
    return ends | ({named} if named is not None else set())


def _spelling_of(tokenizer: Tokenizer, name: str) -> "_ByteLevel | _SentencePiece | _Words":
    """Choose by the kind of the tokenizer's decoder. Raises InputError if the kind is not known."""
    state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {"type": None}
    parts = state.get("decoders", [state])
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _ByteLevel()
    if "Metaspace" in kinds or any(part.get("pattern") == {"String": SPACE} for part in parts):
        return _SentencePiece(byte_fallback="ByteFallback" in kinds)
    if kinds == {"WordPiece"}:
        return _Words(inside=parts[0]["prefix"])
    if kinds == {"BPEDecoder"}:
        return _Words(end=parts[0]["suffix"])
    if kinds == {None}:
        return _Words()
    raise InputError(f"{name}: this kind of tokenizer is not known ({', '.join(map(str, kinds))})")


class _ByteLevel:
    """GPT-2's kind: each byte is written as one printable character (openai/gpt-2, encoder.py)."""

    def __init__(self):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self._character = {byte: chr(byte) for byte in printable}
        self._character |= {byte: chr(256 + place) for place, byte in enumerate(others)}
        self._byte = {character: byte for byte, character in self._character.items()}

    def read(self, word: str) -> bytes:
        try:
            return bytes(map(self._byte.__getitem__, word))
        except KeyError:  # the word was not made of bytes
            return word.encode()

    def write(self, text: bytes) -> str:
        return "".join(map(self._character.__getitem__, text))


class _SentencePiece:
    """A space is written as ▁, and a character that has no token as its bytes, such as `<0x0A>`."""

    def __init__(self, byte_fallback: bool):
        self._byte_fallback = byte_fallback

    def read(self, word: str) -> bytes:
        if self._byte_fallback and len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes([int(word[3:5], 16)])
        return word.replace(SPACE, " ").encode()

    def write(self, text: bytes) -> str | None:
        return text.decode().replace(" ", SPACE) if decodable(text) else None


class _Words:
    """Words with spaces between them. A mark says that a token is inside a word (WordPiece), or ends one."""

    def __init__(self, inside: str = "", end: str = ""):
        self._inside, self._end = inside, end

    def read(self, word: str) -> bytes:
        if self._end:
            return (word.removesuffix(self._end) + " " * word.endswith(self._end)).encode()
        if self._inside and word.startswith(self._inside):
            return word.removeprefix(self._inside).encode()
        return f" {word}".encode()

    def write(self, text: bytes) -> None:
        return None


def decodable(text: bytes) -> bool:
    """Whether these bytes are whole characters in UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
