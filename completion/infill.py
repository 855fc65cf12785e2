"""Infill: a prompt of the code before and after the cursor, with the marker words that the model knows for that."""

from common.fim_words import FimWords
from completion.prompt import Prompt, split_end
from completion.tokens import Vocabulary

SUFFIX_SHARE = 4  # the suffix gets a quarter of the context, or more if the prefix is short


def read_infill(
    vocabulary: Vocabulary,
    words: FimWords,
    prefix: str,
    suffix: str,
    language: str,
    context: int,
    max_new_tokens: int,
) -> Prompt:
    """Tokenize a prompt with a suffix: prefix word, prefix, suffix word, suffix, middle word.

    A model trained here, whose fim_rate is above 0, has also learned the order with the suffix first (training/fim.py),
    and is given that one: prefix word, suffix word, suffix, middle word, prefix. The middle then follows the prefix as
    in any text.

    The end of the prefix is generated again, as part of the middle: after half a word, such as `fl`, a model would
    rather start the word again.

    Code for which there is no room is left out far from the cursor, in whole lines where possible. `Prompt.dropped`
    counts the tokens of the prefix only.
    """
    markers = vocabulary.ids_of(words)
    start = vocabulary.start(language)
    before, end = split_end(vocabulary, prefix, started=True)
    again = len(end.text)  # bytes, at least as many as tokens
    room = context - len(start) - len(markers) - min(max_new_tokens + again, context // 2)
    after = vocabulary.encode(suffix)
    for_suffix = max(room // SUFFIX_SHARE, room - len(before))
    if len(after) > for_suffix:
        after = _encode_within(vocabulary, suffix, for_suffix, keep_end=False)
    whole = len(before)
    if len(before) > room - len(after):
        kept = prefix.encode()[: len(prefix.encode()) - again].decode()
        before = _encode_within(vocabulary, kept, room - len(after), keep_end=True)
    prefix_word, suffix_word, middle_word = ([marker] for marker in markers)
    if vocabulary.fim_rate:  # a model trained here
        ids = [*start, *prefix_word, *suffix_word, *after, *middle_word, *before]
    else:
        ids = [*start, *prefix_word, *before, *suffix_word, *after, *middle_word]
    return Prompt(ids, end, whole - len(before))


def _encode_within(vocabulary: Vocabulary, text: str, room: int, keep_end: bool) -> list[int]:
    """As many whole lines at one end of a text as fit, or else the tokens of a part of the line there."""
    ids = vocabulary.encode(text)
    part = ids[len(ids) - room :] if keep_end else ids[:room]
    kept = b"".join(map(vocabulary.bytes_of, part)).decode(errors="ignore")
    encoded = vocabulary.encode(kept[kept.find("\n") + 1 :] if keep_end else kept[: kept.rfind("\n") + 1])
    return encoded if 0 < len(encoded) <= room else part
