"""A prompt as the model reads it: without its last tokens, which the model generates again (token healing)."""

from dataclasses import dataclass, field
from itertools import takewhile

from completion.stop_rules.stop_rule import lacks_body
from completion.tokens import Vocabulary, decodable

# Examples of text after a prompt. It may change how the prompt's end is tokenized.
FOLLOWERS = ("x", " ", "\t", "\n", "\r\n", "(", "=", "1")
TAIL = 24  # last tokens of the prompt that are tokenized again with each follower; no follower changes earlier ones
MOST_REPLACED = 4  # a longer token may replace this many tokens


@dataclass(frozen=True)
class PromptEnd:
    """The end of a prompt. The model does not read it, but has to generate it before anything else.

    So the model can choose a token that contains the prompt's end and more, such as `):` with its line break.

    Attributes:
        text: the end of the prompt, in whole characters.
        exact: the prompt's own tokens of this text.
        ways: the beginnings of its possible tokenizations that spell only a part of the text, among them ().
    """

    vocabulary: Vocabulary = field(repr=False)
    text: bytes = b""
    exact: tuple[int, ...] = ()
    ways: frozenset[tuple[int, ...]] = frozenset()

    def rest(self, chosen: tuple[int, ...]) -> bytes:
        """Return what is left to spell after these tokens."""
        return self.text[sum(len(self.vocabulary.bytes_of(token)) for token in chosen) :]

    def allowed(self, chosen: tuple[int, ...]) -> list[int]:
        """Return the tokens that may follow these.

        They are the next token of each possible tokenization, and all tokens that begin with the rest of the text. The
        model has never seen other tokens there: never `r` and then `ange`, because `range` is one token.
        """
        depth = len(chosen)
        inner = {way[depth] for way in self.ways if len(way) > depth and way[:depth] == chosen}
        return sorted(inner.union(self.vocabulary.beginning_with(self.rest(chosen))))


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        ids: the tokens before every text, and those of the prompt without its end.
        end: what the answer begins with.
        dropped: how many tokens at the start of the prompt were left out, because it is too long for the model.
        needs_text: whether the answer must contain some text, as after a prompt that opens a block.
        seed: of the candidates' random numbers, which depend on nothing else; None: a random seed.
    """

    ids: list[int]
    end: PromptEnd
    dropped: int = 0
    needs_text: bool = False
    seed: int | None = None


def read_prompt(vocabulary: Vocabulary, text: str, language: str, context_length: int, max_new_tokens: int) -> Prompt:
    """Tokenize a prompt. Of a long one, keep the end, so that `max_new_tokens`, or half of the length, are free."""
    start = vocabulary.start(language)
    ids, end = split_end(vocabulary, text, bool(start))
    start = start or ([] if ids else vocabulary.lone_start)
    room = context_length - len(start) - min(max_new_tokens + len(end.text), context_length // 2)
    dropped = max(0, len(ids) - room)
    return Prompt(start + ids[dropped:], end, dropped, lacks_body(text, language))


def split_end(vocabulary: Vocabulary, text: str, started: bool) -> tuple[list[int], PromptEnd]:
    """Split a text into the tokens that no following text can change, and its end, which is generated again.

    Args:
        started: whether the model reads a token before the text. If not, it reads at least one token of the text.
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
    """Tokenize the end of a text, which has the tokens `ids`, first alone and then with each follower.

    The end is the last TAIL tokens, or the whole text if these depend on the text before them.
    """
    tail = ids[-TAIL:]
    end = b"".join(map(vocabulary.bytes_of, tail)).decode(errors="ignore")
    if vocabulary.encode(end) != tail:  # for example, the tokenizer puts a space before every text
        tail, end = ids, text
    return [tail, *(vocabulary.encode(end + follower) for follower in FOLLOWERS)]


def _certain(vocabulary: Vocabulary, ids: list[int], cuts: list[list[int]], started: bool) -> int:
    """Return how many of a prompt's tokens no following text can change."""
    outside = len(ids) - len(cuts[0])
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*cuts, strict=False)))
    certain = min(outside + common, len(ids) - 1)
    for back in range(2, min(MOST_REPLACED, len(ids)) + 1):
        if vocabulary.beginning_with(b"".join(map(vocabulary.bytes_of, ids[-back:]))):
            certain = min(certain, len(ids) - back)
    while certain and not decodable(b"".join(map(vocabulary.bytes_of, ids[certain:]))):
        certain -= 1  # the end would begin inside a character
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
