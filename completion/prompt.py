"""A prompt as the model reads it: without its last tokens, which are generated again (token healing)."""

from dataclasses import dataclass, field

from completion.stop_rules.stop_rule import lacks_body
from completion.tokens import Vocabulary, common_length, decodable

# Examples of what may follow a prompt, as far as it decides how its end is tokenized: a word, a space, a sign, ...
FOLLOWERS = ("x", " ", "\t", "\n", "\r\n", "(", "=", "1")
TAIL = 24  # tokens at the end that are tokenized again with each follower, which changes none before them
LONGEST = 4  # tokens that one longer token may replace


@dataclass(frozen=True)
class PromptEnd:
    """The end of a prompt, which the model does not read but has to generate first, and how it may be tokenized.

    So the model can choose a token that covers the prompt's end and more, such as `):` with its line break.

    Attributes:
        text: the end of the prompt; whole characters.
        exact: the prompt's own tokens there.
        ways: the token sequences that spell a part of the text and that a possible tokenization begins with; () too.
    """

    vocabulary: Vocabulary = field(repr=False)
    text: bytes = b""
    exact: tuple[int, ...] = ()
    ways: frozenset[tuple[int, ...]] = frozenset()

    def rest(self, chosen: tuple[int, ...]) -> bytes:
        """What is left to spell after these tokens."""
        return self.text[sum(len(self.vocabulary.bytes_of(token)) for token in chosen) :]

    def allowed(self, chosen: tuple[int, ...]) -> list[int]:
        """The tokens that may follow these: the next of a possible tokenization, or any that spells all that is left.

        The model has never seen other tokens there: not `r` and then `ange`, since `range` is one token.
        """
        depth = len(chosen)
        inner = {way[depth] for way in self.ways if len(way) > depth and way[:depth] == chosen}
        return sorted(inner.union(self.vocabulary.beginning_with(self.rest(chosen))))


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        ids: the tokens before every text, and the prompt's tokens without its end.
        end: what the answer begins with.
        dropped: tokens left out at the start of the prompt, for which the context has no room.
        needs_text: whether the answer must contain some text, as after a prompt that opens a block.
        seed: the random numbers of its candidates follow from this alone, whatever else is asked; None: from chance.
    """

    ids: list[int]
    end: PromptEnd
    dropped: int = 0
    needs_text: bool = False
    seed: int | None = None


def read_prompt(vocabulary: Vocabulary, text: str, language: str, context: int, max_new_tokens: int) -> Prompt:
    """Tokenize a prompt. A long one keeps its end, with room for `max_new_tokens` or half of the context."""
    start = vocabulary.start(language)
    ids, end = split_end(vocabulary, text, bool(start))
    start = start or ([] if ids else vocabulary.lone_start())
    room = context - len(start) - min(max_new_tokens + len(end.text), context // 2)
    dropped = max(0, len(ids) - room)
    return Prompt(start + ids[dropped:], end, dropped, lacks_body(text, language))


def split_end(vocabulary: Vocabulary, text: str, started: bool) -> tuple[list[int], PromptEnd]:
    """The tokens of a text that stay the same whatever follows it, and its end, which is generated again.

    Args:
        started: whether the model reads something before the text, so that none of its tokens has to stay.
    """
    ids = vocabulary.encode(text)
    if not ids or not vocabulary.beginning_with(vocabulary.bytes_of(ids[-1])):  # its tokens cannot be looked up
        return ids, PromptEnd(vocabulary)
    cuts = _cuts(vocabulary, text, ids)
    kept = _certain(vocabulary, ids, cuts, started)
    outside = len(ids) - len(cuts[0])
    again = b"".join(map(vocabulary.bytes_of, ids[kept:]))
    ways = _ways(vocabulary, again, [cut[kept - outside :] for cut in cuts])
    return ids[:kept], PromptEnd(vocabulary, again, tuple(ids[kept:]), ways)


def _cuts(vocabulary: Vocabulary, text: str, ids: list[int]) -> list[list[int]]:
    """The tokenizations of the end of a text with these tokens, alone and with each follower: all its tokens, or the
    last TAIL of them, followed by whatever the follower adds."""
    tail = ids[-TAIL:]
    end = b"".join(map(vocabulary.bytes_of, tail)).decode(errors="ignore")
    if vocabulary.encode(end) != tail:  # as with a tokenizer that puts a space before every text
        tail, end = ids, text
    return [tail, *(vocabulary.encode(end + follower) for follower in FOLLOWERS)]


def _certain(vocabulary: Vocabulary, ids: list[int], cuts: list[list[int]], started: bool) -> int:
    """How many of a prompt's tokens stay the same, whatever follows it."""
    outside = len(ids) - len(cuts[0])
    certain = min(outside + common_length(cuts), len(ids) - 1)
    for back in range(2, min(LONGEST, len(ids)) + 1):
        if vocabulary.beginning_with(b"".join(map(vocabulary.bytes_of, ids[-back:]))):
            certain = min(certain, len(ids) - back)
    while certain and not decodable(b"".join(map(vocabulary.bytes_of, ids[certain:]))):
        certain -= 1  # a character of several tokens
    return certain if certain or started else 1  # a model has to read something


def _ways(vocabulary: Vocabulary, text: bytes, cuts: list[list[int]]) -> frozenset[tuple[int, ...]]:
    ways = {()}
    for cut in cuts:
        spelled, way = 0, ()
        for token in cut:
            spelled += len(vocabulary.bytes_of(token))
            if spelled >= len(text):
                break
            way += (token,)
            ways.add(way)
    return frozenset(ways)
