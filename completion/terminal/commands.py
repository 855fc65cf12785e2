"""The conversation's commands, and what is said about a completion."""

from collections.abc import Sequence

from completion.repository.chunks import Chunk
from completion.settings import Completion, Settings

# Commands that set a field of Settings.
OPTIONS = {
    "n": "num_return_sequences",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "max_length": "max_new_tokens",
    "min_probability": "min_probability",
    "seed": "seed",
    "stop": "stop",
}
CURSOR = "<cursor>"  # in what is typed: where to complete, with code behind it
COMMANDS = (*OPTIONS, "lang", "next", "continue", "context", "load", "save", "help", "exit")
HELP = """\
Type code and it is completed. Where lines can be edited, Enter goes to the
next line while a block or bracket is open; Enter on an empty line, or
Alt-Enter anywhere, completes. Ctrl-C stops a completion and keeps the text.
  :n 5               generate 5 candidates: first those that parse, the likeliest first
  :next              show the next of them; where lines can be edited, Tab does
  :temperature 0.2   lower is safer; 0 always takes the likeliest token
  :stop line         end with the line; or with the block, at a blank line, none
  :max_length 128    most tokens to generate
  :top_k :top_p :repetition_penalty :min_probability :seed
                     as those flags; a setting without a value is shown
  :lang java         change the language (as change_lang does)
  :continue          go on where the completion shown last ended, or with
                     :continue 2 where its second candidate did
  <cursor>           in the code: complete here, with what follows in view
  :context           show the code of other files that the model saw last
  :load FILE         complete at the end of a file, in the language of its name
  :save FILE         write the prompt and the completion shown last to a file
  :help              show this text
  exit               end, as Ctrl-D does
"""


def describe(completion: Completion) -> str:
    """One line: how likely, how long, why it ended, whether it parses."""
    parts = [
        f"probability {completion.probability:.2g}",
        f"log-probability {completion.mean_log_prob:.2f} a token",
        f"{len(completion.tokens)} tokens",
        f"ended: {completion.stop_reason}",
    ]
    if completion.parses is not None:
        parts.append("parses" if completion.parses else "does not parse")
    return ", ".join(parts)


def describe_context(chunks: Sequence[Chunk]) -> str:
    """One line: which parts of other files the model saw."""
    parts = [f"{c.path}:{c.first_line}-{c.first_line + len(c.text.splitlines()) - 1}" for c in chunks]
    return "context: " + (", ".join(parts) or "none")


def notes(found: list[Completion], options: Settings, ignores_suffix: bool = False) -> list[str]:
    """What a user should know about these completions that their text does not show."""
    if not found:
        return [f"no candidate reached a probability of {options.min_probability:g}"]
    said, dropped = [], found[0].prompt_tokens_dropped
    if ignores_suffix:
        said.append("this model has not learned to fill in the middle: what follows the cursor is ignored")
    if dropped:
        said.append(f"the prompt is longer than the model's context: its first {dropped} tokens were left out")
    why = {
        "loop": "stopped where the model began to repeat itself",
        "length": f"stopped after {options.max_new_tokens} tokens (--max_length)",
        "context": "stopped where the model's context ends",
        "interrupted": "stopped by Ctrl-C",
    }
    for reason in dict.fromkeys(completion.stop_reason for completion in found if not completion.finished):
        said.append(why[reason] + ": the last line may be unfinished" * (reason != "loop"))
    return said
