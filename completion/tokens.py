"""What completion needs to know about a tokenizer, read without torch or transformers."""

import bisect
import json
from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.command import InputError
from common.fim_words import FimWords, known_fim_words
from common.json_files import read_json
from common.model_files import COMPLETE_COPY, read_config, read_tokenizer
from common.source_code import LANGUAGES

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "gpt_sh_config.json")
SPACE = "▁"  # how SentencePiece spells a space


class Vocabulary:
    """A tokenizer whose tokens are bytes: what a token spells does not depend on the tokens beside it.

    Args:
        tokenizer: as tokenizer.json describes it.
        settings: of the model's JSON files, file name -> content; a missing file counts as empty.
    Raises:
        InputError: it is not known how this tokenizer's tokens become text.
    """

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, dict], name: str = "the model"):
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._spelling = _Spelling.of(tokenizer, name)
        ours = settings.get("gpt_sh_config.json", {})
        self.fim_rate: float = ours.get("fim_rate", 0.0)  # 0 also for models that were not trained here
        self._lower_case = ours.get("do_lower_case", False)
        words = [f"<{language}>" for language in LANGUAGES]
        self._control = {word: id for word in words if (id := tokenizer.token_to_id(word)) is not None}
        special = {id for id, token in self._added.items() if token.special}
        ends = _end_ids(tokenizer, settings)
        self.end_ids = frozenset(special | ends | set(self._control.values()))  # none of them is text
        self._start = self._begin(settings.get("tokenizer_config.json", {}))
        self._fallback = sorted(ends)[:1] or sorted(special)[:1] or [0]

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Of a model folder with tokenizer.json.

        Raises:
            InputError: no such file, or it cannot be read as a tokenizer.
        """
        tokenizer = read_tokenizer(folder)
        return cls(tokenizer, read_settings(folder), str(folder))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with nothing added before or after it. A control word spelled in it is ordinary text."""
        self._tokenizer.encode_special_tokens = True
        return self._tokenizer.encode(text.lower() if self._lower_case else text, add_special_tokens=False).ids

    def start(self, language: str) -> list[int]:
        """The tokens before every text: those that the tokenizer itself adds, if any, and the language's control word
        if the model has one. As GPTSingleHead.start_ids."""
        word = f"<{language}>"
        return self._start + ([self._control[word]] if word in self._control else [])

    def ids_of(self, words: Iterable[str]) -> list[int | None]:
        """The ids of words that are single tokens; None for those that are not."""
        return [self._tokenizer.token_to_id(word) for word in words]

    @cached_property
    def fim_words(self) -> FimWords | None:
        """The marker words with which this model infills; None if it has not learned that."""
        return known_fim_words(self._tokenizer.token_to_id)

    def lone_start(self) -> list[int]:
        """What the model reads first if the prompt is empty and no token comes before every text."""
        return self._fallback

    def bytes_of(self, token: int) -> bytes:
        """What a token spells; nothing for the end of a text or an id that the tokenizer has no word for."""
        if token in self.end_ids or (word := self._tokenizer.id_to_token(token)) is None:
            return b""
        return word.encode() if token in self._added else self._spelling.read(word)

    def beginning_with(self, text: bytes) -> list[int]:
        """The tokens whose bytes begin with these."""
        if not (word := self._spelling.write(text)):
            return []
        first = bisect.bisect_left(self._words, word)
        return [
            id
            for found in takewhile(lambda other: other.startswith(word), self._words[first:])
            if (id := self._ids[found]) not in self.end_ids
        ]

    def spell(self, text: bytes) -> list[int] | None:
        """Tokens that spell these bytes, each as long as possible; None if there are none."""
        ids = []
        while text:
            for length in range(len(text), 0, -1):
                word = self._spelling.write(text[:length])
                id = self._tokenizer.token_to_id(word) if word else None
                id = id if id is not None else self._spelling.byte_token(self._tokenizer, text[:length])
                if id is not None:
                    break
            else:
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
        if "add_bos_token" in config:  # transformers obeys this, whatever tokenizer.json says
            bos = self._tokenizer.token_to_id(_word(config.get("bos_token"))) if config["add_bos_token"] else None
            return [] if bos is None else [bos]
        ids = self._tokenizer.encode("x").ids
        text = self._tokenizer.encode("x", add_special_tokens=False).ids
        places = range(len(ids) - len(text) + 1)
        return ids[: next((place for place in places if ids[place : place + len(text)] == text), 0)]


def read_settings(folder: Path) -> dict[str, dict]:
    """The JSON files of a model folder that say how its texts begin and end."""
    files = [folder / name for name in SETTINGS if (folder / name).is_file()]
    return {file.name: read_json(file, dict, COMPLETE_COPY) for file in files}


def context_length(folder: Path) -> int:
    """The most tokens that the saved model has positions for."""
    config = read_config(folder)
    return config.get("max_position_embeddings") or config["n_positions"]


def _word(entry: Any) -> str:
    """A token's name in tokenizer_config.json, which older files give as a dictionary; empty where it is none."""
    entry = entry.get("content") if isinstance(entry, dict) else entry
    return entry.encode(errors="replace").decode() if isinstance(entry, str) else ""  # no token holds half a character


def _end_ids(tokenizer: Tokenizer, settings: dict[str, dict]) -> set[int]:
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        eos = settings.get(name, {}).get("eos_token_id")
        ends |= {id for id in (eos if isinstance(eos, list) else [eos]) if isinstance(id, int) and id >= 0}
    named = tokenizer.token_to_id(_word(settings.get("tokenizer_config.json", {}).get("eos_token")))
    return ends | ({named} if named is not None else set())


class _Spelling:
    """How a tokenizer writes bytes as words, by the kind of its decoder."""

    @staticmethod
    def of(tokenizer: Tokenizer, name: str) -> "_Spelling":
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
        raise InputError(f"{name}: its tokenizer's way to write text ({', '.join(map(str, kinds))}) is not known")

    def read(self, word: str) -> bytes:
        raise NotImplementedError

    def write(self, text: bytes) -> str | None:
        """The beginning of the words that begin with these bytes; None if this cannot be told."""
        return None

    def byte_token(self, tokenizer: Tokenizer, text: bytes) -> int | None:
        return None


class _ByteLevel(_Spelling):
    """GPT-2's: every byte has a printable character of its own (openai/gpt-2, encoder.py)."""

    def __init__(self):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self._character = {byte: chr(byte) for byte in printable}
        self._character |= {byte: chr(256 + place) for place, byte in enumerate(others)}
        self._byte = {character: byte for byte, character in self._character.items()}

    def read(self, word: str) -> bytes:
        try:
            return bytes(map(self._byte.__getitem__, word))
        except KeyError:  # a word that was not made of bytes
            return word.encode()

    def write(self, text: bytes) -> str:
        return "".join(map(self._character.__getitem__, text))


class _SentencePiece(_Spelling):
    """A space is written ▁, and a character without a token as its bytes, `<0x0A>`."""

    def __init__(self, byte_fallback: bool):
        self._byte_fallback = byte_fallback

    def read(self, word: str) -> bytes:
        if self._byte_fallback and len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes([int(word[3:5], 16)])
        return word.replace(SPACE, " ").encode()

    def write(self, text: bytes) -> str | None:
        try:
            return text.decode().replace(" ", SPACE)
        except UnicodeDecodeError:
            return None

    def byte_token(self, tokenizer: Tokenizer, text: bytes) -> int | None:
        return tokenizer.token_to_id(f"<0x{text[0]:02X}>") if self._byte_fallback and len(text) == 1 else None


class _Words(_Spelling):
    """Words with spaces between them: WordPiece, whose tokens inside a word have a mark, and similar ones."""

    def __init__(self, inside: str = "", end: str = ""):
        self._inside, self._end = inside, end

    def read(self, word: str) -> bytes:
        if self._end:
            return (word.removesuffix(self._end) + " " * word.endswith(self._end)).encode()
        if self._inside and word.startswith(self._inside):
            return word.removeprefix(self._inside).encode()
        return f" {word}".encode()


def decodable(text: bytes) -> bool:
    """Whether these bytes are whole characters."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def common_length(sequences: Iterable[list[int]]) -> int:
    """How many leading elements all sequences share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
