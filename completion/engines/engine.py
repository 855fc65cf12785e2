"""What both engines have in common: they generate tokens for prompts, step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from completion.prompt import Prompt
from completion.settings import CompletionSettings
from completion.tokens import Vocabulary


@dataclass(frozen=True)
class Step:
    """One token of one candidate.

    Attributes:
        candidate: its number, counted over all prompts.
        log_prob: log-probability under the model, in nats, before any sampling setting. For a token that spells the
            prompt's end, it is relative to all tokens that may spell that end. None if the engine does not know it.
    """

    candidate: int
    token: int
    log_prob: float | None


class Engine(Protocol):
    """Generates tokens with a model."""

    name: str  # for the user: the program, and how it stores the weights
    vocabulary: Vocabulary
    context_length: int  # the most tokens, of prompt and completion together, that the model has positions for

    def stream(self, prompts: Sequence[Prompt], options: CompletionSettings, over: set[int]) -> Iterator[Step]:
        """Generate `options.candidates` candidates for each prompt, all at once where possible.

        The first of several candidates always takes the most likely token. A candidate ends where the context is full,
        or after enough tokens for `max_new_tokens`, or soon after the caller has put its number into `over`.
        """
        ...
