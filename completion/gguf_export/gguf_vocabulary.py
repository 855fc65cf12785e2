"""A Hugging Face tokenizer.json as the vocabulary of a GGUF file."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType

from common.model_files import known_fim_words
from common.source_code import SPECIAL_WORDS
from completion.gguf_export.errors import CannotConvert
from completion.tokens import Vocabulary

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The patterns that split a text into words before merging, and whether a word that is in the vocabulary becomes one
# token whatever the merges say -> llama.cpp's name for this
SPLITS = {
    ((GPT2,), False): "gpt-2",
    (("digits", GPT2), False): "smollm",
    ((LLAMA3.replace("{1,3}", ""),), False): "qwen2",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits"), False): "deepseek-coder",
}
FIM_KEYS = (gguf.Keys.Tokenizer.FIM_PRE_ID, gguf.Keys.Tokenizer.FIM_SUF_ID, gguf.Keys.Tokenizer.FIM_MID_ID)
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def add_vocabulary(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> str | None:
    """Write the vocabulary of the model in `folder`, with one token for each row of its embedding.

    Returns:
        Why a program that tokenizes with the file may get other ids than the tokenizer gives; None if it gets the same.
    Raises:
        CannotConvert: there is no tokenizer.json, or llama.cpp would turn its ids into a different text.
        InputError: the tokenizer cannot be read.
        LookupError, TypeError, ...: its JSON does not have the expected shape.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CannotConvert("it has no tokenizer.json")
    vocabulary = Vocabulary.load(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise CannotConvert("its tokenizer marks the parts of words")
    tokens, types = _tokens(tokenizer, config["vocab_size"])
    decoders = _kinds(tokenizer["decoder"], "decoders")
    if model["type"] == "BPE" and decoders == ["ByteLevel"]:
        difference = _byte_level(writer, tokenizer)
    elif model["type"] in ("BPE", "Unigram") and (decoders == ["Metaspace"] or "Replace" in decoders):
        difference = _sentence_piece(writer, tokenizer, tokens, types)
    else:
        raise CannotConvert(f"its tokenizer is {model['type']} with the decoder {'+'.join(decoders) or 'none'}")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_ids(writer, folder, config, tokens, vocabulary.start(""))
    return difference


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    return component[key] if component["type"] == "Sequence" else [component]


def _kinds(component: dict[str, Any] | None, key: str) -> list[str]:
    return [part["type"] for part in _parts(component, key)]


def _tokens(tokenizer: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of the token of every row of the embedding."""
    words = tokenizer["model"]["vocab"]  # {text: id}, or Unigram's [(text, score), ...]
    ids = words.items() if isinstance(words, dict) else ((text, id) for id, (text, _) in enumerate(words))
    texts = {id: text for text, id in ids}
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


def _merges(model: dict[str, Any]) -> list[str]:
    return [
        pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]
    ]  # a list since tokenizers 0.20


def _byte_level(writer: GGUFWriter, tokenizer: dict[str, Any]) -> str | None:
    model = tokenizer["model"]
    split = SPLITS.get((_split(tokenizer["pre_tokenizer"]), bool(model.get("ignore_merges"))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split or "default")
    writer.add_token_merges(_merges(model))
    normalizers = _kinds(tokenizer.get("normalizer"), "normalizers")
    if split is None:
        return "llama.cpp has no name for the way in which its tokenizer splits texts into words"
    if normalizers not in ([], ["NFC"]):
        return f"its tokenizer changes texts first ({'+'.join(normalizers)})"
    return None


def _split(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """Return the patterns that split a text into words, in order; None if anything else splits it."""
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


def _sentence_piece(writer: GGUFWriter, tokenizer: dict[str, Any], tokens: list[str], types: list[int]) -> str | None:
    """Write a SentencePiece vocabulary: a space is ▁, and a character without a token is spelled by its bytes."""
    model = tokenizer["model"]
    for id, text in enumerate(tokens):
        if types[id] == TokenType.NORMAL and BYTE.fullmatch(text):
            types[id] = int(TokenType.BYTE)
    if model["type"] == "Unigram":
        name, unknown = "t5", model.get("unk_id")
        scores = [score for _, score in model["vocab"]]
        scores += [0.0] * (len(tokens) - len(scores))
    else:  # llama.cpp first merges the pair whose token has the highest score
        name, unknown = "llama", model["vocab"].get(model.get("unk_token"))
        rank: dict[str, int] = {}
        for number, merge in enumerate(_merges(model)):
            rank.setdefault(merge.replace(" ", ""), number)
        scores = [-float(rank.get(text, len(rank))) for text in tokens]
    if unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
        writer.add_unk_token_id(unknown)
    writer.add_tokenizer_model(name)
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    normalizers = _parts(tokenizer.get("normalizer"), "normalizers")
    splits = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prepends = [p["type"] == "Prepend" or p.get("prepend_scheme") in ("first", "always") for p in normalizers + splits]
    writer.add_add_space_prefix(any(prepends))
    writer.add_remove_extra_whitespaces(False)
    unlike = [part["type"] for part in normalizers if part["type"] not in ("Prepend", "Replace")]
    unlike += [part["type"] for part in splits if part["type"] != "Metaspace"]
    if unlike:
        return f"llama.cpp does not change or split texts as its tokenizer does ({'+'.join(unlike)})"
    return None


def _add_special_ids(
    writer: GGUFWriter, folder: Path, config: dict[str, Any], tokens: list[str], start: list[int]
) -> None:
    """Write the ids that begin and end a text. The names in tokenizer_config.json win over the ids in config.json.

    Args:
        start: the ids that the tokenizer puts before every text.
    """
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    id_of = {text: id for id, text in enumerate(tokens)}
    ids: dict[str, int] = {}
    for word in ("bos", "eos", "pad"):
        text, number = named.get(f"{word}_token"), config.get(f"{word}_token_id")
        text = text["content"] if isinstance(text, dict) else text
        number = number[0] if isinstance(number, list) else number
        if text in id_of or (isinstance(number, int) and 0 <= number < len(tokens)):
            ids[word] = id_of.get(text, number)
    # In training every text began with a control word, which other programs do not know. The file therefore names the
    # first control word, also for models of several languages: a wrong one costs far less than none.
    control = [id_of[word] for word in SPECIAL_WORDS["additional_special_tokens"] if word in id_of]
    if control and not start:
        ids["bos"], start = control[0], control[:1]
    for word, id in ids.items():
        getattr(writer, f"add_{word}_token_id")(id)
    for key, text in zip(FIM_KEYS, known_fim_words(id_of.get) or (), strict=False):
        writer.add_uint32(key, id_of[text])
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
    writer.add_add_bos_token("bos" in ids and start == [ids["bos"]])
    writer.add_add_eos_token(False)
