"""The conversation's commands, and notes about a completion."""

from collections.abc import Sequence
from dataclasses import fields

from completion.repository.chunks import Chunk
from completion.settings import Completion, CompletionSettings
from completion.stop_rules.stop_rule import STOPS

# A command -> the field of CompletionSettings that it sets. A short name of the flag is also the command's name.
SETTING_COMMANDS = {
    (field.metadata["aliases"] or [field.name])[0].lstrip("-"): field for field in fields(CompletionSettings)
}
CURSOR = "<cursor>"  # in typed code: complete here, with the code after it as the suffix
COMMANDS = (*SETTING_COMMANDS, "lang", "next", "continue", "context", "load", "save", "help", "exit")
HELP = f"""\
Type code and it is completed. Enter starts a new line while a block or bracket
is open. Enter on an empty line completes, and so does Alt-Enter anywhere.
Ctrl-C stops a completion and keeps the text so far.
  :n 5               generate 5 candidates; those that parse come first
  :next              show the next candidate, as Tab on an empty line does
  :temperature 0.2   lower is safer; 0 always takes the most likely token
  :stop line         where to end: {", ".join(STOPS)}
  :max_length 128    the most tokens to generate
  :top_k :top_p :repetition_penalty :min_probability :seed
                     like the flags of interact.py; alone, show the value
  :lang java         change the language; change_lang asks for it
  :continue          go on after the completion shown last; :continue 2 goes
                     on after the second candidate
  <cursor>           in the code: complete here, with the code after it in view
  :context           show the code of other files that the model saw last
  :load FILE         complete at the end of a file, in the language of its name
  :save FILE         write the prompt and the completion shown last to a file
  :help              show this text
  exit               end the conversation, as Ctrl-D does
"""


def describe(completion: Completion) -> str:
    """Return one line: the probability, the length, why the completion ended, and whether it parses."""
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
    """Return one line: which parts of other files the model saw."""
    parts = [f"{c.path}:{c.first_line}-{c.first_line + len(c.text.splitlines()) - 1}" for c in chunks]
    return "context: " + (", ".join(parts) or "none")


def notes(found: list[Completion], options: CompletionSettings, ignores_suffix: bool = False) -> list[str]:
    """Return what a user should know about these completions but cannot see in their text."""
    if not found:
        return [f"no candidate reached a probability of {options.min_probability:g}"]
    lines, dropped = [], found[0].prompt_tokens_dropped
    if ignores_suffix:
        lines.append("this model has not learned infill: the code after the cursor is ignored")
    if dropped:
        lines.append(f"the prompt is longer than the model's context: its first {dropped} tokens were left out")
    why = {
        "loop": "stopped where the model began to repeat itself",
        "length": f"stopped after {options.max_new_tokens} tokens (--max_length)",
        "context": "stopped where the model's context ends",
        "interrupted": "stopped by Ctrl-C",
    }
    for reason in dict.fromkeys(completion.stop_reason for completion in found if not completion.finished):
        lines.append(why[reason] + ": the last line may be unfinished" * (reason != "loop"))
    return lines
