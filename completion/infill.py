"""Infill prompts: the code before and after the cursor, with the marker words that the model knows (FIM)."""

from completion.cursor import Cursor
from completion.prompt import Prompt, split_end
from completion.tokens import Vocabulary

SUFFIX_SHARE = 4  # the suffix gets a quarter of the context length, or more if the prefix is short


def read_infill(vocabulary: Vocabulary, cursor: Cursor, context_length: int, max_new_tokens: int) -> Prompt:
    """Tokenize a prompt with a suffix: prefix word, prefix, suffix word, suffix, middle word.

    Models trained here (`fim_rate` above 0) have also learned the suffix first (training/fim.py), and get that order:
    prefix word, suffix word, suffix, middle word, prefix. There the middle directly follows the prefix, as in any text.

    The model generates the end of the prefix again, as part of the middle: after half a word, such as `fl`, a model
    tends to write the whole word again.

    If the context length is too small, the code far from the cursor is left out, in whole lines where possible.
    `Prompt.dropped` counts tokens of the prefix only.
    """
    markers = vocabulary.ids_of(vocabulary.fim_words)
    start = vocabulary.start(cursor.language)
    before, end = split_end(vocabulary, cursor.prefix, started=True)
    again = len(end.text)  # bytes; it has at most as many tokens
    room = context_length - len(start) - len(markers) - min(max_new_tokens + again, context_length // 2)
    after = vocabulary.encode(cursor.suffix)
    for_suffix = max(room // SUFFIX_SHARE, room - len(before))
    if len(after) > for_suffix:
        after = _encode_within(vocabulary, cursor.suffix, for_suffix, keep_end=False)
    whole = len(before)
    if len(before) > room - len(after):
        kept = cursor.prefix.encode()[: len(cursor.prefix.encode()) - again].decode()
        before = _encode_within(vocabulary, kept, room - len(after), keep_end=True)
    prefix_word, suffix_word, middle_word = ([marker] for marker in markers)
    if vocabulary.fim_rate:  # a model trained here
        ids = [*start, *prefix_word, *suffix_word, *after, *middle_word, *before]
    else:
        ids = [*start, *prefix_word, *before, *suffix_word, *after, *middle_word]
    return Prompt(ids, end, whole - len(before))


def _encode_within(vocabulary: Vocabulary, text: str, room: int, keep_end: bool) -> list[int]:
    """Return the tokens of the whole lines that fit, at one end of a text; if no line fits, of a part of a line."""
    ids = vocabulary.encode(text)
    part = ids[len(ids) - room :] if keep_end else ids[:room]
    kept = b"".join(map(vocabulary.bytes_of, part)).decode(errors="ignore")
    encoded = vocabulary.encode(kept[kept.find("\n") + 1 :] if keep_end else kept[: kept.rfind("\n") + 1])
    return encoded if 0 < len(encoded) <= room else part
