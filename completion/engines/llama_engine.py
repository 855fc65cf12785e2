"""Generate with llama.cpp, in this process and on its CPU; neither torch nor transformers is imported."""

import math
import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.command import first_line
from completion.engines.engine import Step
from completion.engines.llama_server import load_library, set_threads, start_private
from completion.gguf_export.errors import CannotConvert
from completion.gguf_export.gguf_cache import converted
from completion.prompt import Prompt, PromptEnd
from completion.settings import CompletionSettings
from completion.tokens import Vocabulary, context_length, decodable

SEQUENCES = 8  # that decode together at most, unless one prompt has more candidates
ROOM = 1024  # tokens of context at least, so that a conversation need not begin anew at every prompt
# Tokens this much less likely than the most likely one are not sorted for top_p, which would take as long as a small
# model's layers. Even 100,000 of them have at most 1 % of the probability together.
NEGLIGIBLE = 1e-7
CONSIDERED = 256  # most likely tokens, among which those that spell the prompt's end are searched
# A prompt of more tokens than this is not read twice, once for the greedy candidate and once for the others: it is
# decoded in turn instead, which costs less.
READ_TWICE = 256


class LlamaEngine:
    """A model folder as llama.cpp runs it, converted on first use.

    Args:
        folder: of a saved model.
        kind: how its weights are stored: q8_0 or f16.
    Raises:
        CannotConvert: llama.cpp cannot run the model.
        ImportError: xllamacpp or gguf is not installed, or does not work on this machine.
        InputError: as `Vocabulary.load`.
    """

    def __init__(self, folder: Path, kind: str = "q8_0"):
        self._library = load_library()
        self.name = f"llama.cpp, {kind.upper()}"
        self._server, self._sequences, self._room = None, 0, 0
        self._file = converted(folder, kind)
        self.vocabulary = Vocabulary.load(folder)
        self.context_length = context_length(folder)
        try:
            self._serve(1, 1)
        except RuntimeError:  # llama.cpp does not say why; the cached file may be damaged
            self._file = converted(folder, kind, again=True)
            try:
                self._serve(1, 1)
            except RuntimeError as error:
                raise CannotConvert(f"it cannot load the converted file ({first_line(error)})") from None
        # A server that is deleted before its loop has begun waits for the loop's end for ever.
        self._ask({"prompt": [0], "n_predict": 0}, lambda choice: True)

    def stream(self, prompts: Sequence[Prompt], options: CompletionSettings, over: set[int]) -> Iterator[Step]:
        """See `Engine.stream`."""
        room = max(len(prompt.ids) + len(prompt.end.text) for prompt in prompts) + options.max_new_tokens
        at_once = max(1, min(len(prompts), SEQUENCES // options.candidates))
        self._serve(min(room, self.context_length), at_once * options.candidates)
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
            except BaseException as error:  # shown by the thread that reads the steps
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
        """Have llama.cpp answer a request in its own form; `stream` is compared with the time of that."""
        self._serve(len(request["prompt"]) + request["n_predict"], sequences)
        self._ask(request, lambda choice: False)

    def _generate(
        self, prompt: Prompt, options: CompletionSettings, numbers: Sequence[int], emit: Callable[[Step], bool]
    ) -> None:
        """Generate the candidates with these numbers; `emit` takes each token and answers whether that is enough."""
        request: dict = {"prompt": prompt.ids}
        given: float | None = 0.0  # the log-probability of all first tokens that spell the prompt's end
        if prompt.needs_text:
            request["grammar"] = f"root ::= {SOME_TEXT}"
        if prompt.end.text:
            likely = self._likeliest(prompt.ids)
            fitting = {token: likely[token] for token in self._fitting(prompt.end, likely)}
            request["grammar"] = grammar(prompt.end, fitting, SOME_TEXT if prompt.needs_text else ANY)
            given = math.log(sum(map(math.exp, fitting.values()))) if fitting else None
        most = options.max_new_tokens + len(prompt.end.text)
        request |= {
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
        greedy = len(numbers) > 1 or options.temperature == 0
        parts = [(0.0, numbers[:greedy]), (options.temperature, numbers[greedy:])]
        parts = [part for part in parts if part[1]]
        # With a seed in turn too: what shares a step with a sequence decides the last bits of its sums.
        together = len(prompt.ids) <= READ_TWICE and prompt.seed is None
        with ThreadPoolExecutor(len(parts) if together else 1) as pool:
            for _ in pool.map(lambda part: self._sample(request, *part, given, emit), parts):
                pass

    def _sample(
        self,
        request: dict,
        temperature: float,
        numbers: Sequence[int],
        given: float | None,
        emit: Callable[[Step], bool],
    ) -> None:
        """Generate candidates at one temperature."""
        begun, enough = set(), set()

        def read(choice: dict) -> bool:
            number = numbers[choice["index"]]
            for token, log_prob in self._tokens(choice):
                if log_prob is not None and number not in begun:
                    log_prob = None if given is None else min(0.0, log_prob - given)
                begun.add(number)
                if emit(Step(number, token, log_prob)):
                    enough.add(number)
            return len(enough) == len(numbers)

        self._ask(request | {"n": len(numbers), "temperature": temperature}, read)

    def _ask(self, request: dict, read: Callable[[dict], bool]) -> None:
        """Send a request; `read` takes each part of the answer and says whether that is enough."""
        failures = []

        def guarded(chunk: dict) -> bool:
            try:
                if "error" in chunk:
                    raise RuntimeError(f"llama.cpp: {chunk['error']['message']}")
                return read(chunk["choices"][0])
            except BaseException as error:  # an exception must not leave a function that C++ has called
                failures.append(error)
                return True

        self._server.handle_completions(request | {"stream": True, "cache_prompt": True}, guarded)
        if failures:
            raise failures[0]

    def _likeliest(self, ids: list[int]) -> dict[int, float]:
        """The likeliest next tokens and their log-probabilities."""
        found: dict[int, float] = {}

        def read(choice: dict) -> bool:
            for score in _scores(choice):
                found.update((entry["id"], entry["logprob"]) for entry in score["top_logprobs"])
            return False

        request = {"prompt": ids, "n_predict": 1, "n_probs": CONSIDERED, "temperature": 0, "grammar": WHOLE_CHARACTERS}
        self._ask(request, read)
        return found

    def _fitting(self, end: PromptEnd, likely: dict[int, float]) -> list[int]:
        """The likely tokens that the answer may start with."""
        inner = {way[0] for way in end.ways if way}
        spelled = {token: self.vocabulary.bytes_of(token) for token in likely}
        return [
            token
            for token, text in spelled.items()
            if token in inner or (text.startswith(end.text) and decodable(text))
        ]

    def _tokens(self, choice: dict) -> Iterator[tuple[int, float | None]]:
        """The tokens of a part of an answer. A character of several comes as one part that names only the last."""
        for score in _scores(choice):
            last, content = self.vocabulary.bytes_of(score["id"]), choice["text"].encode()
            if last and content != last and content.endswith(last):
                for token in self.vocabulary.spell(content[: -len(last)]) or ():
                    yield token, None
            yield score["id"], score["logprob"]

    def _serve(self, room: int, sequences: int) -> None:
        """Have a server with room for this many tokens in each of so many sequences."""
        if self._server and room <= self._room and sequences <= self._sequences:
            return
        room = min(self.context_length, max(ROOM, 1 << (room - 1).bit_length()))
        self._room, self._sequences = max(room, self._room), max(sequences, self._sequences)
        self._server = None  # its memory first
        params = self._library.CommonParams()
        params.model.path = str(self._file)
        params.n_ctx, params.n_parallel = self._room * self._sequences, self._sequences
        params.warmup = params.fit_params = params.ui = params.cache_idle_slots = False
        params.endpoint_slots = params.endpoint_props = False
        params.cache_ram_mib = params.verbosity = params.n_gpu_layers = 0
        set_threads(params, self._file)
        self._server = start_private(self._library.Server, params)


ANY = r"[\x00-\U0010FFFF]*"
SOME_TEXT = rf"[ \t\r\n]* [^ \t\r\n] {ANY}"
WHOLE_CHARACTERS = r"root ::= [\x00-\x7F]+"  # llama.cpp gives no probabilities for a token that is a part of one


def _scores(choice: dict) -> list[dict]:
    return (choice.get("logprobs") or {}).get("content") or []


def grammar(end: PromptEnd, fitting: Sequence[int], rest: str) -> str:
    """A grammar in llama.cpp's GBNF: the answer starts with the prompt's end and goes on with `rest`.

    It names the likely tokens that spell the whole end, since a grammar of characters would also allow any token that
    spells a part of it. After the first token of a longer tokenization, characters are enough.
    """
    spelled = end.vocabulary.bytes_of
    choices = [f"<[{token}]>" for token in fitting if (token,) not in end.ways]
    for way in sorted(end.ways):
        if way and all(decodable(spelled(token)) for token in way):
            choices.append(" ".join(f"<[{token}]>" for token in way) + f" {literal(end.rest(way))}")
    if all(decodable(spelled(token)) for token in end.exact):
        choices.append(" ".join(f"<[{token}]>" for token in end.exact))
    else:  # a character of several tokens, which the grammar follows byte by byte
        choices.append(literal(end.text))
    return f"root ::= ({' | '.join(dict.fromkeys(choices))}) {rest}"


def literal(text: bytes) -> str:
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text.decode()) + '"'
