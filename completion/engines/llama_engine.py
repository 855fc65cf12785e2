"""Generate with llama.cpp, in this process and on its CPU. Imports neither torch nor transformers."""

import math
import os
import queue
import random
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.command import first_line
from common.files import scratch_folder
from completion.engines.engine import Step
from completion.engines.llama_server import load_library, start_server
from completion.gguf_export.errors import CannotConvert
from completion.gguf_export.gguf_cache import converted
from completion.prompt import Prompt, PromptEnd
from completion.settings import CompletionSettings
from completion.tokens import Vocabulary, context_length, decodable

SEQUENCES = 8  # the most that are decoded together, unless one prompt has more candidates
SHORTEST_CONTEXT = 1024  # tokens; so that a conversation does not need a larger server after every prompt
# A token whose probability is less than this times that of the most likely token is dropped before top_p. Sorting all
# tokens would take as long as a small model's layers. Even 100,000 such tokens have at most 1 % of the probability.
NEGLIGIBLE = 1e-7
LIKELY_TOKENS = 256  # most likely tokens, among which those that spell the prompt's end are searched
# With several candidates, the greedy one and the sampled ones are two requests. They run at the same time, and both
# read the prompt. A prompt of more tokens than this is read only once, and the requests run one after the other.
READ_TWICE = 256

# Grammars in llama.cpp's notation, GBNF.
ANY_TEXT = r"[\x00-\U0010FFFF]*"
NOT_BLANK = rf"[ \t\r\n]* [^ \t\r\n] {ANY_TEXT}"
WHOLE_CHARACTERS = r"root ::= [\x00-\x7F]+"  # llama.cpp gives no probabilities for a token that is part of a character


class LlamaEngine:
    """A saved model that llama.cpp runs. It is converted to GGUF on first use.

    Args:
        folder: of the saved model.
        kind: how weights are stored, q8_0 or f16.
    Raises:
        CannotConvert: llama.cpp cannot run the model.
        ImportError: xllamacpp or gguf is not installed, or does not work on this machine.
        InputError: as `Vocabulary.load`.
    """

    def __init__(self, folder: Path, kind: str = "q8_0"):
        self._library = load_library()
        self.name = f"llama.cpp, {kind.upper()}"
        self._server, self._sequences, self._length = None, 0, 0
        self._file = converted(folder, kind)
        self.vocabulary = Vocabulary.load(folder)
        self.context_length = context_length(folder)
        try:
            self._prepare(1, 1)
        except RuntimeError:  # llama.cpp does not say why; the cached file may be damaged
            self._file = converted(folder, kind, again=True)
            try:
                self._prepare(1, 1)
            except RuntimeError as error:
                raise CannotConvert(f"it cannot load the converted file ({first_line(error)})") from None
        # A server that is deleted before its loop has started waits forever for the loop's end.
        self._ask({"prompt": [0], "n_predict": 0}, lambda choice: True)

    def stream(self, prompts: Sequence[Prompt], options: CompletionSettings, over: set[int]) -> Iterator[Step]:
        """See `Engine.stream`."""
        length = max(len(prompt.ids) + len(prompt.end.text) for prompt in prompts) + options.max_new_tokens
        at_once = max(1, min(len(prompts), SEQUENCES // options.candidates))
        self._prepare(min(length, self.context_length), at_once * options.candidates)
        steps: queue.SimpleQueue[Step | BaseException | None] = queue.SimpleQueue()
        closing = threading.Event()

        def work(first: int, prompt: Prompt) -> None:
            def emit(step: Step) -> bool:
                steps.put(step)
                return closing.is_set() or step.candidate in over

            try:
                if not closing.is_set():
                    self._generate(prompt, options, range(first, first + options.candidates), emit)
                steps.put(None)
            except BaseException as error:  # the thread that reads the steps raises it again
                steps.put(error)

        with ThreadPoolExecutor(at_once) as pool:
            try:
                for place, prompt in enumerate(prompts):
                    pool.submit(work, place * options.candidates, prompt)
                running = len(prompts)
                while running:
                    step = steps.get()
                    if step is None:
                        running -= 1
                    elif isinstance(step, Step):
                        yield step
                    else:
                        raise step
            finally:
                closing.set()

    def answer(self, request: dict, sequences: int) -> None:
        """Have llama.cpp answer a request in its own format. The benchmark compares `stream` with this."""
        self._prepare(len(request["prompt"]) + request["n_predict"], sequences)
        self._ask(request, lambda choice: False)

    def _generate(
        self, prompt: Prompt, options: CompletionSettings, numbers: Sequence[int], emit: Callable[[Step], bool]
    ) -> None:
        """Generate the candidates with these numbers. `emit` is called with each token, and returns true at the last
        one that its candidate needs."""
        most = options.max_new_tokens + len(prompt.end.text)
        request = {
            "prompt": prompt.ids,
            "n_predict": min(most, self.context_length - len(prompt.ids)),
            "n_probs": 1,
            "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],
            "min_p": NEGLIGIBLE,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "repeat_penalty": options.repetition_penalty,
            "repeat_last_n": self.context_length,
            "seed": random.getrandbits(31) if prompt.seed is None else prompt.seed,
        }
        end_log_prob: float | None = 0.0  # the log-probability of all first tokens that spell the prompt's end
        if prompt.end.text:
            fitting = self._fitting(prompt)
            request["grammar"] = grammar(prompt.end, fitting, NOT_BLANK if prompt.needs_text else ANY_TEXT)
            end_log_prob = math.log(sum(map(math.exp, fitting.values()))) if fitting else None
        elif prompt.needs_text:
            request["grammar"] = f"root ::= {NOT_BLANK}"
        greedy = len(numbers) > 1 or options.temperature == 0
        parts = [(0.0, numbers[:greedy]), (options.temperature, numbers[greedy:])]
        parts = [part for part in parts if part[1]]
        # Also with a seed one after the other: sequences that are computed together change each other's last bits.
        together = len(prompt.ids) <= READ_TWICE and prompt.seed is None
        with ThreadPoolExecutor(len(parts) if together else 1) as pool:
            for _ in pool.map(lambda part: self._sample(request, *part, end_log_prob, emit), parts):
                pass

    def _sample(
        self,
        request: dict,
        temperature: float,
        numbers: Sequence[int],
        end_log_prob: float | None,
        emit: Callable[[Step], bool],
    ) -> None:
        """Generate candidates at one temperature."""
        begun, finished = set(), set()

        def read(choice: dict) -> bool:
            number = numbers[choice["index"]]
            for token, log_prob in self._tokens(choice):
                if log_prob is not None and number not in begun:
                    log_prob = None if end_log_prob is None else min(0.0, log_prob - end_log_prob)
                begun.add(number)
                if emit(Step(number, token, log_prob)):
                    finished.add(number)
            return len(finished) == len(numbers)

        self._ask(request | {"n": len(numbers), "temperature": temperature}, read)

    def _ask(self, request: dict, read: Callable[[dict], bool]) -> None:
        """Send a request. `read` is called with each part of the answer, and returns true when that is enough."""
        failures = []

        def guarded(chunk: dict) -> bool:
            try:
                if "error" in chunk:
                    raise RuntimeError(f"llama.cpp: {chunk['error']['message']}")
                return read(chunk["choices"][0])
            except BaseException as error:  # C++ called this function, and an exception must not reach C++
                failures.append(error)
                return True

        self._server.handle_completions(request | {"stream": True, "cache_prompt": True}, guarded)
        if failures:
            raise failures[0]

    def _fitting(self, prompt: Prompt) -> dict[int, float]:
        """Return the likely tokens that the answer may start with, and their log-probabilities."""
        likely: dict[int, float] = {}

        def read(choice: dict) -> bool:
            for score in _scores(choice):
                likely.update((entry["id"], entry["logprob"]) for entry in score["top_logprobs"])
            return False

        request = {"prompt": prompt.ids, "n_predict": 1, "n_probs": LIKELY_TOKENS, "temperature": 0}
        self._ask(request | {"grammar": WHOLE_CHARACTERS}, read)
        inner = {way[0] for way in prompt.end.ways if way}

        def fits(token: int) -> bool:
            text = self.vocabulary.bytes_of(token)
            return token in inner or (text.startswith(prompt.end.text) and decodable(text))

        return {token: log_prob for token, log_prob in likely.items() if fits(token)}

    def _tokens(self, choice: dict) -> Iterator[tuple[int, float | None]]:
        """Yield the tokens of a part of an answer. Of the tokens of one character, the part names only the last."""
        for score in _scores(choice):
            last, content = self.vocabulary.bytes_of(score["id"]), choice["text"].encode()
            if last and content != last and content.endswith(last):
                for token in self.vocabulary.spell(content[: -len(last)]) or ():
                    yield token, None
            yield score["id"], score["logprob"]

    def _prepare(self, length: int, sequences: int) -> None:
        """Have a server with room for this many sequences of this many tokens."""
        if self._server and length <= self._length and sequences <= self._sequences:
            return
        length = min(self.context_length, max(SHORTEST_CONTEXT, 1 << (length - 1).bit_length()))
        self._length, self._sequences = max(length, self._length), max(sequences, self._sequences)
        self._server = None  # first, to free its memory
        # Only this process uses the server, and not through its socket: nobody else may enter the socket's folder, and
        # nobody can connect to a socket whose file was removed.
        file = scratch_folder() / "x.sock"
        private = {"hostnames": [str(file)]}
        if os.name == "nt" or not hasattr(socket, "AF_UNIX"):
            private = {"hostnames": ["127.0.0.1"], "port": 0, "api_keys": [secrets.token_hex(32)]}
        size = {"n_ctx": self._length * self._sequences, "n_parallel": self._sequences}
        unused = {"n_gpu_layers": 0, "cache_idle_slots": False, "endpoint_props": False}
        self._server = start_server(self._library, self._file, **size, **unused, **private)
        file.unlink(missing_ok=True)


def _scores(choice: dict) -> list[dict]:
    return (choice.get("logprobs") or {}).get("content") or []


def grammar(end: PromptEnd, fitting: Sequence[int], rest: str) -> str:
    """Return a grammar in GBNF: the answer starts with the prompt's end and goes on with `rest`.

    The grammar names the likely tokens that spell the whole end, because a grammar of characters would also allow any
    token that spells a part of it. After the first token of a longer tokenization, characters are enough.
    """
    spelled = end.vocabulary.bytes_of
    choices = [f"<[{token}]>" for token in fitting if (token,) not in end.ways]
    for way in sorted(end.ways):
        if way and all(decodable(spelled(token)) for token in way):
            choices.append(" ".join(f"<[{token}]>" for token in way) + f" {literal(end.rest(way))}")
    if all(decodable(spelled(token)) for token in end.exact):
        choices.append(" ".join(f"<[{token}]>" for token in end.exact))
    else:  # a character of several tokens, which the grammar checks byte by byte
        choices.append(literal(end.text))
    return f"root ::= ({' | '.join(dict.fromkeys(choices))}) {rest}"


def literal(text: bytes) -> str:
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text.decode()) + '"'
