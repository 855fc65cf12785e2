"""What the engines have in common: they generate tokens for prompts, step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from completion.prompt import Prompt
from completion.settings import CompletionSettings
from completion.tokens import Vocabulary


@dataclass(frozen=True)
class Step:
    """A token of one candidate.

    Attributes:
        candidate: its number, counted over all prompts.
        log_prob: under the model, before any sampling setting, in nats. At the prompt's end, which is given, it is the
            log-probability of the choice among the tokens that spell that end. None: the engine cannot tell.
    """

    candidate: int
    token: int
    log_prob: float | None


class Engine(Protocol):
    """Generates tokens with a model."""

    name: str  # for the user: the program and how it stores the weights
    vocabulary: Vocabulary
    context_length: int  # the most tokens, prompt and completion together, that the model has positions for

    def stream(self, prompts: Sequence[Prompt], options: CompletionSettings, over: set[int]) -> Iterator[Step]:
        """Generate `options.candidates` candidates for each prompt, all of them at once where possible.

        The first of several candidates always takes the most likely token. A candidate ends where its context is
        full, after enough tokens for `max_new_tokens`, or soon after its number is put into `over`.
        """
        ...
