"""How to complete, and what a completion is."""

from dataclasses import dataclass

from common.command import Flags, flag
from completion.stop_rules.stop_rule import STOPS


@dataclass(frozen=True)
class CompletionSettings(Flags):
    """How to complete; the fields are also flags of interact.py.

    Raises:
        InputError: a value outside its range.
    """

    max_new_tokens: int = flag(128, "most tokens to generate", "--max_length", at_least=1, at_most=100_000)
    temperature: float = flag(
        0.2, "divides the logits before sampling; 0 always takes the most likely token", at_least=0, at_most=100
    )
    top_k: int = flag(0, "sample only from this many of the most likely tokens; 0: from all", at_least=0)
    top_p: float = flag(
        0.95, "sample only from the most likely tokens that together have this probability", above=0, at_most=1
    )
    repetition_penalty: float = flag(
        1.0, "above 1, tokens that were seen before become less likely", at_least=0.01, at_most=100
    )
    num_return_sequences: int = flag(
        1, "number of candidates; the first always takes the most likely token", "--n", at_least=1, at_most=100
    )
    seed: int | None = flag(None, "makes sampling repeatable", type=int, at_least=0, below=2**63)
    stop: str = flag("block", "where a completion ends: with the block, at a blank line, with the line", choices=STOPS)
    min_probability: float = flag(0.0, "leave out candidates whose joint probability is lower", at_least=0, at_most=1)

    @property
    def candidates(self) -> int:
        """How many to decode: at temperature 0 they would all be the same."""
        return self.num_return_sequences if self.temperature else 1


@dataclass(frozen=True)
class Completion:
    """One candidate.

    Attributes:
        text: the completion alone, without the prompt.
        tokens: the ids that spell it.
        mean_log_prob: mean log-probability of these tokens under the model, in nats. Of the tokens that spell one
            character together, llama.cpp gives the last one's only, and the others do not count. -inf if none is known.
        probability: joint probability of the same tokens; 0 if none is known.
        stop_reason: the stop rule's name; "eos" (the model ended the file); "loop" (the same again and again, left out
            but for once where it is whole lines); "length" (max_new_tokens reached) or "context" (the model's context
            is full) or "interrupted", where the last line may be unfinished.
        parses: whether prompt and text together are valid Python; None for other languages.
        prompt_tokens_dropped: tokens of the prompt's beginning for which the model's context had no room.
    """

    text: str
    tokens: list[int]
    mean_log_prob: float
    probability: float
    stop_reason: str
    parses: bool | None = None
    prompt_tokens_dropped: int = 0

    @property
    def finished(self) -> bool:
        return self.stop_reason not in ("loop", "length", "context", "interrupted")
