"""Complete source code with a fine-tuned model: in a conversation, or once.

python interact.py                                      # the newest run in model/, else the embedded model
python interact.py --prompt "def bubble_sort(items):"
head -20 model.py | python interact.py --stop line
python interact.py --file model.py --line 20 --n 3 --json      # the model sees the code after the line, too
python interact.py --prompt "for name in os.listdir(" --suffix "):"
python interact.py --model_path model/distilgpt2_fine_tuned_coder --temperature 0.2
"""

import json
import logging
import math
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out
from common.command import InputError, flag, parse_flags, run_command, utf8
from common.gpu import has_gpu
from common.model_files import BEST_MODEL, newest_run
from common.source_code import LANGUAGES, decode_source, language_of, read_source
from completion.complete import complete_at
from completion.cursor import Cursor
from completion.engines.engine import Engine
from completion.engines.load_engine import ENGINE_PRECISIONS, load_engine
from completion.repository.choice import choose_context, work_tree
from completion.repository.repository import Repository
from completion.settings import CompletionSettings
from completion.terminal.commands import describe, describe_context, notes
from completion.terminal.conversation import Conversation, interruptible
from completion.terminal.plain_screen import printable


@dataclass(frozen=True)
class Config(CompletionSettings):
    """The flags of interact.py."""

    model_path: str = flag(
        "", "a run folder, a model folder, tiny or a Hub id; empty: the newest run in model/, else tiny"
    )
    language: str = flag("", "empty: from the name of --file, else python; a conversation asks", choices=LANGUAGES)
    precision: str = flag(
        "auto",
        "of the weights, in llama.cpp (q8_0, f16) or PyTorch; auto: q8_0 on a CPU, bf16 or fp16 on a GPU",
        choices=ENGINE_PRECISIONS,
    )
    use_cuda: bool = flag(False, "has no effect: a GPU is always used if there is one")
    prompt: str | None = flag(None, "complete this text, without a conversation", type=utf8)
    file: str | None = flag(None, "complete at the end of this file, or at --line", type=str)
    line: int | None = flag(None, "with --file: complete after this line", type=int, at_least=1)
    column: int | None = flag(
        None, "with --line: complete after this many characters of the line", type=int, at_least=0
    )
    suffix: str | None = flag(None, "with --prompt: the code after the place to complete", type=utf8)
    repository: str | None = flag(
        None,
        "show the model similar code from this folder's source files; default: those of --file's git work tree",
        type=str,
    )
    context_tokens: int = flag(
        500, "most tokens of other files that the model sees; 0: none", at_least=0, at_most=1_000_000
    )
    verbose: bool = flag(False, "report which parts of other files the model saw")
    no_infill: bool = flag(False, "ignore the code after the place to complete")
    json: bool = flag(False, "print the candidates with their scores as JSON")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and self.file is not None:
            raise InputError("--prompt and --file: give one of them")
        for flag_name, needed in (("line", "file"), ("column", "line"), ("suffix", "prompt")):
            if getattr(self, flag_name) is not None and getattr(self, needed) is None:
                raise InputError(f"--{flag_name} needs --{needed}")

    def settings(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(CompletionSettings)}


def main() -> None:
    config = parse_flags(Config, __doc__)
    prompt, suffix = find_prompt(config)
    if prompt is None and config.json:
        raise InputError("--json needs a prompt: --prompt TEXT, --file FILE, or a text on standard input")
    logging.basicConfig(format="%(message)s")
    path = config.model_path or newest_run()
    engine = load_engine(path, config.precision)
    if config.use_cuda and not has_gpu():
        print("note: --use_cuda, but no GPU was found; the CPU is used", file=sys.stderr)
    if prompt is None:
        name = Path(path).name.replace(BEST_MODEL, Path(path).absolute().parent.name)
        shown = {"repository": open_repository(config), "context_tokens": config.context_tokens}
        Conversation(engine, name, config.language, config.settings(), **shown).run()
    else:
        print_completions(engine, prompt, "" if config.no_infill else suffix, config)


def open_repository(config: Config) -> Repository | None:
    """Return the project whose files the model may see; None if there is none, or with --context_tokens 0.

    Raises:
        InputError: --repository names no folder with source files.
    """
    if not config.context_tokens:
        return None
    if config.repository is not None:
        return Repository(Path(config.repository))
    folder = work_tree(Path(config.file)) if config.file is not None else None
    with suppress(InputError):  # git ignores --file, and there is no other source file
        return Repository(folder) if folder else None
    return None


def find_prompt(config: Config) -> tuple[str | None, str]:
    """Return the code before and after the place to complete; (None, "") for a conversation.

    Raises:
        InputError: the text is empty or cannot be decoded, or the file has no such place.
    """
    suffix = ""
    if config.prompt is not None:
        prompt, suffix, source = config.prompt, config.suffix or "", "--prompt"
    elif config.file is not None:
        prompt, source = read_source(Path(config.file)), config.file
        if config.line is not None:
            place = find_place(prompt, config)
            prompt, suffix = prompt[:place], prompt[place:]
    elif sys.stdin.isatty():
        return None, ""
    else:
        prompt, source = decode_source(sys.stdin.buffer.read(), "standard input"), "standard input"
    if not prompt.strip():
        raise InputError(f"{source}: empty; give some code to complete")
    return prompt, suffix


def find_place(text: str, config: Config) -> int:
    """Return the index of the place that --line and --column name; without --column, of the end of the line.

    Raises:
        InputError: the file has no such place.
    """
    lines = text.split("\n")
    if config.line > len(lines):
        raise InputError(f"{config.file}: has lines 1 to {len(lines)}, not {config.line}")
    line = lines[config.line - 1]
    if config.column is not None and config.column > len(line):
        raise InputError(f"{config.file}:{config.line}: has {len(line)} characters, not {config.column}")
    start = sum(len(before) + 1 for before in lines[: config.line - 1])
    return start + (len(line) if config.column is None else config.column)


def print_completions(engine: Engine, prompt: str, suffix: str, config: Config) -> None:
    """Complete once. The completions go to standard output, notes about them to stderr."""
    streams = not config.json and config.num_return_sequences == 1 and config.min_probability == 0
    language = config.language or language_of(Path(config.file or "")) or LANGUAGES[0]
    cursor = Cursor(prompt, suffix, language)
    if repository := open_repository(config):
        cursor = replace(cursor, path=repository.path_of(config.file) if config.file else "")
        most = {"max_tokens": config.context_tokens, "max_new_tokens": config.max_new_tokens}
        cursor = choose_context(repository, engine, cursor, **most)
    # A terminal must not get control characters. A file gets exactly what the model wrote.
    shown = printable if sys.stdout.isatty() else str
    with interruptible() as cancelled:
        on_text = (lambda text: print(shown(text), end="", flush=True)) if streams else None
        found = complete_at(engine, cursor, on_text=on_text, cancelled=cancelled, **config.settings())
    if config.json:
        unknown = {"mean_log_prob": None, "probability": None}  # JSON has no -inf
        rows = [asdict(c) | (unknown if c.mean_log_prob == -math.inf else {}) for c in found]
        print(json.dumps(rows, indent=2))
    elif streams:
        print()
    else:
        for number, completion in enumerate(found, 1):
            if config.num_return_sequences > 1:
                print(f"--- {number}: {describe(completion)}")
            print(shown(completion.text))
    sys.stdout.flush()  # the notes come after the text, also if both go to one file
    if config.verbose:
        print(f"note: {describe_context(cursor.context)}", file=sys.stderr)
    for note in notes(found, config, bool(suffix) and not engine.vocabulary.fim_words):
        print(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
