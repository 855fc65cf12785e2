"""The cursor in the middle: a prompt of what stands before and after it, in the words that a model knows for that."""

from common.fim_words import FimWords
from completion.prompt import Prompt, split_end
from completion.tokens import Vocabulary

SUFFIX_SHARE = 4  # the suffix gets one part in four of the context, and more where the prefix is short


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

    A model trained here knows a second order too (training/fim.py), and is asked in that one: prefix word, suffix word,
    suffix, middle word, prefix, which the middle follows as in any text.

    The end of the prefix is written again, as part of the middle: a model asked to go on behind half a word, such as
    `fl`, would rather begin the word anew.

    What has no room is left out at the far ends, whole lines of it where there are any, so that the model sees the
    lines around the cursor. `Prompt.dropped` counts tokens of the prefix alone.
    """
    markers = vocabulary.ids_of(words)
    start = vocabulary.start(language)
    before, beginning = split_end(vocabulary, prefix, started=True)
    again = len(beginning.text)  # bytes, at least as many as tokens
    room = context - len(start) - len(markers) - min(max_new_tokens + again, context // 2)
    after = vocabulary.encode(suffix)
    for_suffix = max(room // SUFFIX_SHARE, room - len(before))
    if len(after) > for_suffix:
        after = _encode_within(vocabulary, suffix, for_suffix, keep_end=False)
    whole = len(before)
    if len(before) > room - len(after):
        kept = prefix.encode()[: len(prefix.encode()) - again].decode()
        before = _encode_within(vocabulary, kept, room - len(after), keep_end=True)
    opening, behind, middle = ([marker] for marker in markers)
    if vocabulary.suffix_first:
        ids = [*start, *opening, *behind, *after, *middle, *before]
    else:
        ids = [*start, *opening, *before, *behind, *after, *middle]
    return Prompt(ids, beginning, whole - len(before))


def _encode_within(vocabulary: Vocabulary, text: str, room: int, keep_end: bool) -> list[int]:
    """As many whole lines at one end of a text as fit, or else the tokens of a part of the line there."""
    ids = vocabulary.encode(text)
    part = ids[len(ids) - room :] if keep_end else ids[:room]
    kept = b"".join(map(vocabulary.bytes_of, part)).decode(errors="ignore")
    encoded = vocabulary.encode(kept[kept.find("\n") + 1 :] if keep_end else kept[: kept.rfind("\n") + 1])
    return encoded if 0 < len(encoded) <= room else part
