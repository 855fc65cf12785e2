"""A prompt as the model reads it, ending where a token of the whole text would end (token healing)."""

from dataclasses import dataclass, field

from completion.stop_rules.stop_rule import lacks_body
from completion.tokens import Vocabulary, common_length, decodable

# What may follow a prompt, as far as it decides how its end is cut: a word, a blank, a line break, a sign, a digit.
FOLLOWERS = ("x", " ", "\t", "\n", "\r\n", "(", "=", "1")
TAIL = 24  # tokens at the end that are cut again for each follower; what follows does not reach further back
LONGEST = 4  # tokens that one longer token may stand for


@dataclass(frozen=True)
class Beginning:
    """The text that the answer has to begin with, and how the tokenizer might cut it.

    Attributes:
        text: the end of the prompt, left out of what the model reads; whole characters.
        exact: the tokens that the prompt itself had there.
        ways: tokens that lie within the text with more of it to come: (), and what each possible cut begins with.
    """

    vocabulary: Vocabulary = field(repr=False)
    text: bytes = b""
    exact: tuple[int, ...] = ()
    ways: frozenset[tuple[int, ...]] = frozenset()

    def rest(self, chosen: tuple[int, ...]) -> bytes:
        """What is left to spell after these tokens."""
        return self.text[sum(len(self.vocabulary.bytes_of(token)) for token in chosen) :]

    def allowed(self, chosen: tuple[int, ...]) -> list[int]:
        """The tokens that may follow these: the next of a possible cut, or any that spells all that is left.

        A token that spells a part only, and by no cut of the tokenizer's, leads where the model has never been: from
        `r` to `ange`, although `range` is one token.
        """
        depth = len(chosen)
        inner = {way[depth] for way in self.ways if len(way) > depth and way[:depth] == chosen}
        return sorted(inner.union(self.vocabulary.beginning_with(self.rest(chosen))))


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        ids: what stands before every text, and the prompt's tokens.
        beginning: what the answer begins with.
        dropped: tokens left out at the beginning, for which the context has no room.
        needs_text: whether the answer may not end before it has said something, as where the prompt opens a block.
        seed: the random numbers of its candidates follow from this alone, whatever else is asked; None: from chance.
    """

    ids: list[int]
    beginning: Beginning
    dropped: int = 0
    needs_text: bool = False
    seed: int | None = None


def read_prompt(vocabulary: Vocabulary, text: str, language: str, context: int, max_new_tokens: int) -> Prompt:
    """Tokenize a prompt. A long one keeps its end, with room for `max_new_tokens` or half of the context."""
    start = vocabulary.start(language)
    ids, beginning = split_end(vocabulary, text, bool(start))
    start = start or ([] if ids else vocabulary.lone_start())
    room = context - len(start) - min(max_new_tokens + len(beginning.text), context // 2)
    dropped = max(0, len(ids) - room)
    return Prompt(start + ids[dropped:], beginning, dropped, lacks_body(text, language))


def split_end(vocabulary: Vocabulary, text: str, started: bool) -> tuple[list[int], Beginning]:
    """The tokens of a text that stay whatever follows it, and its end, which is to be written again.

    Args:
        started: whether the model reads something before the text, so that none of its tokens has to stay.
    """
    ids = vocabulary.encode(text)
    if not ids or not vocabulary.beginning_with(vocabulary.bytes_of(ids[-1])):  # its tokens cannot be looked up
        return ids, Beginning(vocabulary)
    cuts = _cuts(vocabulary, text, ids)
    kept = _certain(vocabulary, ids, cuts, started)
    outside = len(ids) - len(cuts[0])
    again = b"".join(map(vocabulary.bytes_of, ids[kept:]))
    ways = _ways(vocabulary, again, [cut[kept - outside :] for cut in cuts])
    return ids[:kept], Beginning(vocabulary, again, tuple(ids[kept:]), ways)


def _cuts(vocabulary: Vocabulary, text: str, ids: list[int]) -> list[list[int]]:
    """The ways in which the end of a text with these tokens is cut, one for each follower: all its tokens, or the last
    TAIL of them, followed by whatever the follower adds."""
    tail = ids[-TAIL:]
    end = b"".join(map(vocabulary.bytes_of, tail)).decode(errors="ignore")
    if vocabulary.encode(end) != tail:  # as with a tokenizer that puts a space before every text
        tail, end = ids, text
    return [tail, *(vocabulary.encode(end + follower) for follower in FOLLOWERS)]


def _certain(vocabulary: Vocabulary, ids: list[int], cuts: list[list[int]], started: bool) -> int:
    """How many of a prompt's tokens stay, whatever follows it."""
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
