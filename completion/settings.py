"""How to complete, and what a completion is."""

from dataclasses import dataclass

from common.command import Flags, flag
from completion.stop_rules.stop_rule import STOPS

TOKENS = {"at_least": 1, "at_most": 100_000}  # ranges of flags that other commands have too
TEMPERATURE = {"at_least": 0, "at_most": 100}


@dataclass(frozen=True)
class CompletionSettings(Flags):
    """How to complete. The fields are also flags of interact.py.

    Raises:
        InputError: a value is outside its range.
    """

    max_new_tokens: int = flag(128, "most tokens to generate", "--max_length", **TOKENS)
    temperature: float = flag(0.2, "0: the most likely tokens; higher: more varied text", **TEMPERATURE)
    top_k: int = flag(0, "sample only from this many most likely tokens; 0: from all", at_least=0)
    top_p: float = flag(0.95, "sample from the most likely tokens with this joint probability", above=0, at_most=1)
    repetition_penalty: float = flag(1.0, "above 1, earlier tokens become less likely", at_least=0.01, at_most=100)
    num_return_sequences: int = flag(
        1, "number of candidates; the first always takes the most likely token", "--n", at_least=1, at_most=100
    )
    seed: int | None = flag(None, "makes sampling repeatable", type=int, at_least=0, below=2**63)
    stop: str = flag("block", "where a completion ends (see docs/completion.md)", choices=STOPS)
    min_probability: float = flag(0.0, "leave out candidates with a lower joint probability", at_least=0, at_most=1)

    @property
    def candidates(self) -> int:
        """How many candidates to generate. At temperature 0 they would all be the same."""
        return self.num_return_sequences if self.temperature else 1


@dataclass(frozen=True)
class Completion:
    """One candidate.

    Attributes:
        text: the completion alone, without the prompt.
        tokens: the ids that spell the text.
        mean_log_prob: mean log-probability of these tokens under the model, in nats; -inf if none is known. If several
            tokens spell one character, llama.cpp gives only that of the last one, and the others do not count.
        probability: joint probability of the same tokens; 0 if none is known.
        stop_reason: the stop rule's name, or "eos" (the model ended the file), "loop" (the model repeated itself; of
            repeated lines only the first occurrence is kept), "length" (max_new_tokens reached), "context" (the
            model's context is full) or "interrupted". After the last three, the last line may be unfinished.
        parses: whether prompt and text together are valid Python; None for other languages.
        prompt_tokens_dropped: tokens at the start of the prompt for which the model's context had no room.
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
