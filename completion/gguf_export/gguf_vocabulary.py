"""A Hugging Face tokenizer.json as the vocabulary of a GGUF file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType

from common.fim_words import known_fim_words
from common.source_code import SPECIAL_WORDS
from completion import tokens
from completion.gguf_export.errors import CannotConvert

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is cut into words before merging, as the parts of a pre_tokenizer, and llama.cpp's name for it; then
# whether a word that is in the vocabulary is taken whole, however it would be merged.
SPLITS = {
    ((GPT2,), False): "gpt-2",
    (("digits", GPT2), False): "smollm",
    ((LLAMA3.replace("{1,3}", ""),), False): "qwen2",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits"), False): "deepseek-coder",
}
ID_KEYS = {
    "bos": gguf.Keys.Tokenizer.BOS_ID,
    "eos": gguf.Keys.Tokenizer.EOS_ID,
    "pad": gguf.Keys.Tokenizer.PAD_ID,
    "fim_pre": gguf.Keys.Tokenizer.FIM_PRE_ID,
    "fim_suf": gguf.Keys.Tokenizer.FIM_SUF_ID,
    "fim_mid": gguf.Keys.Tokenizer.FIM_MID_ID,
}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """How far llama.cpp's own tokenizer agrees with the model's.

    Attributes:
        split: llama.cpp's name of the way texts are cut, or None.
        difference: why a program that tokenises with the file may get other ids; None where it does not.
    """

    split: str | None
    difference: str | None = None


def add_vocabulary(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> Vocabulary:
    """Give the file the vocabulary of the model in `folder`, filled up to the rows of its embedding.

    Raises:
        CannotConvert: there is no tokenizer.json, or llama.cpp would turn its ids into another text.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CannotConvert("it has no tokenizer.json")
    before = tokens.Vocabulary.load(folder).start("")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise CannotConvert("its tokenizer marks the parts of words")
    texts, types = _tokens(tokenizer, config["vocab_size"])
    decoders = [part["type"] for part in _parts(tokenizer["decoder"], "decoders")]
    if model["type"] == "BPE" and decoders == ["ByteLevel"]:
        vocabulary = _byte_level(writer, tokenizer)
    elif model["type"] in ("BPE", "Unigram") and (decoders == ["Metaspace"] or "Replace" in decoders):
        vocabulary = _sentence_piece(writer, tokenizer, texts, types)
    else:
        raise CannotConvert(f"its tokenizer is {model['type']} with the decoder {'+'.join(decoders) or 'none'}")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    _special_ids(writer, folder, config, texts, before)
    return vocabulary


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    return component[key] if component["type"] == "Sequence" else [component]


def _tokens(tokenizer: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of every row of the embedding."""
    words = tokenizer["model"]["vocab"]  # {text: id}, or Unigram's [(text, score), ...]
    texts = (
        {id: text for text, id in words.items()}
        if isinstance(words, dict)
        else {id: text for id, (text, _) in enumerate(words)}
    )
    types = dict.fromkeys(texts, TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        texts[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(texts) >= rows:
        raise CannotConvert(f"its tokenizer has the id {max(texts)}, its embedding {rows} rows")
    tokens = [texts.get(id, f"[PAD{id}]") for id in range(rows)]
    if len(set(tokens)) < rows:
        raise CannotConvert("two of its tokens have the same text")
    return tokens, [int(types.get(id, TokenType.UNUSED)) for id in range(rows)]


def _byte_level(writer: GGUFWriter, tokenizer: dict[str, Any]) -> Vocabulary:
    split = SPLITS.get((_split(tokenizer["pre_tokenizer"]), bool(tokenizer["model"].get("ignore_merges"))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split or "default")
    merges = tokenizer["model"]["merges"]  # "a b", or since tokenizers 0.20 ["a", "b"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    normalizers = [part["type"] for part in _parts(tokenizer.get("normalizer"), "normalizers")]
    if split is None:
        return Vocabulary(None, "llama.cpp has no name for the way in which its tokenizer cuts texts into words")
    if normalizers not in ([], ["NFC"]):
        return Vocabulary(split, f"its tokenizer changes texts first ({'+'.join(normalizers)})")
    return Vocabulary(split)


def _split(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The patterns that cut a text into words, one after the other; None where they have no such form."""
    found: list[str] = []
    for part in _parts(pre_tokenizer, "pretokenizers"):
        match part:
            case {"type": "ByteLevel", "add_prefix_space": False}:
                found += [GPT2] * part.get("use_regex", True)
            case {"type": "Digits", "individual_digits": True}:
                found.append("digits")
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                found.append(pattern)
            case _:
                return None
    return tuple(found)


def _sentence_piece(writer: GGUFWriter, tokenizer: dict[str, Any], tokens: list[str], types: list[int]) -> Vocabulary:
    """SentencePiece's kinds: blanks are ▁, and a character without a token is its bytes."""
    model = tokenizer["model"]
    for id, text in enumerate(tokens):
        if types[id] == TokenType.NORMAL and BYTE.fullmatch(text):
            types[id] = int(TokenType.BYTE)
    if model["type"] == "Unigram":
        writer.add_tokenizer_model("t5")
        unknown = model.get("unk_id")
        scores = [score for _, score in model["vocab"]]
        scores += [0.0] * (len(tokens) - len(scores))
    else:  # llama.cpp merges the pair whose token has the highest score
        writer.add_tokenizer_model("llama")
        unknown = model["vocab"].get(model.get("unk_token"))
        rank: dict[str, int] = {}
        for number, merge in enumerate(model["merges"]):
            rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), number)
        scores = [-float(rank.get(text, len(rank))) for text in tokens]
    if unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
        writer.add_unk_token_id(unknown)
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    normalizers = _parts(tokenizer.get("normalizer"), "normalizers")
    cuts = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    writer.add_add_space_prefix(
        any(
            part["type"] == "Prepend" or part.get("prepend_scheme") in ("first", "always")
            for part in normalizers + cuts
        )
    )
    writer.add_remove_extra_whitespaces(False)
    unlike = [part["type"] for part in normalizers if part["type"] not in ("Prepend", "Replace")]
    unlike += [part["type"] for part in cuts if part["type"] != "Metaspace"]
    if unlike:
        return Vocabulary(
            None, f"llama.cpp does not change or cut texts first as its tokenizer does ({'+'.join(unlike)})"
        )
    return Vocabulary("sentencepiece")


def _special_ids(
    writer: GGUFWriter, folder: Path, config: dict[str, Any], tokens: list[str], before: list[int]
) -> None:
    """Where a text begins and ends. What tokenizer_config.json names comes before what config.json numbers."""
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    id_of = {text: id for id, text in enumerate(tokens)}
    ids: dict[str, int] = {}
    for word in ("bos", "eos", "pad"):
        text = named.get(f"{word}_token")
        text = text["content"] if isinstance(text, dict) else text
        number = config.get(f"{word}_token_id")
        number = number[0] if isinstance(number, list) else number
        if text in id_of or (isinstance(number, int) and 0 <= number < len(tokens)):
            ids[word] = id_of.get(text, number)
    for word, text in zip(("fim_pre", "fim_suf", "fim_mid"), known_fim_words(id_of.get) or (), strict=False):
        ids[word] = id_of[text]
    # Texts began with a control word when the model was trained, and others do not know of it; where it knows several,
    # the first of them, which costs another language far less than none would.
    control = [id_of[word] for word in SPECIAL_WORDS["additional_special_tokens"] if word in id_of]
    if control and not before:
        ids["bos"], before = control[0], control[:1]
    for word, id in ids.items():
        writer.add_uint32(ID_KEYS[word], id)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
    writer.add_add_bos_token("bos" in ids and before == [ids["bos"]])
    writer.add_add_eos_token(False)
