"""How likely a model finds the text that really occurs at a place."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from common.model_files import find_pretrained
from completion.engines.engine import Engine
from completion.engines.load_engine import load_engine
from completion.prompt import Prompt

if TYPE_CHECKING:
    import torch

    from model import GPTSingleHead


class Score(NamedTuple):
    """How a model rates a text after a prompt.

    Attributes:
        bits: what the text costs the model.
        first_choice: whether the model's most likely tokens spell the text and then end the line or the file. Greedy
            completion, without stop rules, writes the text exactly then.
    """

    bits: float
    first_choice: bool


def load_measured(path: str, precision: str = "auto") -> "tuple[Engine, GPTSingleHead]":
    """Load a model's engine, and the model in PyTorch, which `score_texts` needs.

    Args:
        precision: as `load_engine` takes it; but with auto, PyTorch runs the model where the hardware is fast in 16
            bits. There it reads the long prompts of a measurement faster: with SmolLM2-135M and repository context, an
            answer took 1.1 s in bf16 on two cores with AMX, and 3.4 s in llama.cpp.
    """
    import torch

    from common.devices import choose_device, choose_dtype
    from model import GPTSingleHead

    device = choose_device()
    dtype = choose_dtype("auto", device)
    engine = load_engine(path, "bf16" if (precision, dtype) == ("auto", torch.bfloat16) else precision)
    model = getattr(engine, "model", None)
    if model is None:
        model = GPTSingleHead.load(find_pretrained(path)).eval().requires_grad_(False).to(device)
        model.gpt.to(dtype)
    return engine, model


def score_texts(
    model: "GPTSingleHead", prompts: Sequence[Prompt], texts: Sequence[str], at_line_end: bool = True
) -> list[Score]:
    """Score a text after each prompt, all in one forward pass.

    Args:
        at_line_end: whether the texts end with their line, so that their last token may spell the line break too.

    As in completion, the end of each prompt is generated again. During that, only tokens that spell it are allowed, and
    all other tokens get probability 0.
    """
    import torch

    written = [
        prompt.end.vocabulary.encode(prompt.end.text.decode() + text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    rows = [torch.tensor(prompt.ids + ids) for prompt, ids in zip(prompts, written, strict=True)]
    # Padding on the right changes nothing, because no token sees those after it.
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_id)
    ranges = [range(len(prompt.ids) - 1, len(row)) for prompt, row in zip(prompts, rows, strict=True)]
    kept = sorted(set().union(*ranges))  # only these positions need logits
    with torch.no_grad():
        positions = torch.tensor(kept, device=model.device)
        logits = model.gpt(input_ids=batch.to(model.device), logits_to_keep=positions).logits
    scores = []
    for place, (prompt, ids, own) in enumerate(zip(prompts, written, ranges, strict=True)):
        first = kept.index(own[0])
        scores.append(_score(prompt, ids, logits[place, first : first + len(own)].float(), at_line_end))
    return scores


def _score(prompt: Prompt, ids: list[int], logits: "torch.Tensor", at_line_end: bool) -> Score:
    """Args: logits: [ids + 1, V] float32, which this changes."""
    import torch

    end, vocabulary = prompt.end, prompt.end.vocabulary
    chosen: tuple[int, ...] = ()
    reachable = True  # completion does not generate every tokenization of the prompt's end
    for place, token in enumerate(ids):
        if not end.rest(chosen):
            break
        allowed = end.allowed(chosen)
        if token not in allowed:
            reachable = False
            break
        others = torch.ones_like(logits[place], dtype=torch.bool)
        others[torch.tensor(allowed, device=others.device)] = False
        logits[place].masked_fill_(others, -math.inf)
        chosen += (token,)
    log_probs = logits[: len(ids)].log_softmax(-1)
    own = log_probs.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    if ids and reachable and at_line_end:  # a token may spell the last sign and the line break after it
        last = vocabulary.bytes_of(ids[-1])
        whole = [token for line_break in (b"\n", b"\r\n") for token in vocabulary.beginning_with(last + line_break)]
        own[-1] = log_probs[-1, [ids[-1], *whole]].logsumexp(0)
    bits = -own.sum().item() / math.log(2)
    choices = logits.argmax(-1).tolist()
    agreed = next((place for place, token in enumerate(ids) if choices[place] != token), len(ids))
    text, spelled = (b"".join(map(vocabulary.bytes_of, tokens)) for tokens in (ids, choices[: agreed + 1]))
    ended = choices[agreed] in vocabulary.end_ids
    line, line_break, _ = spelled[len(end.text) :].partition(b"\n")
    is_whole = reachable and (ended or bool(line_break))
    return Score(bits, is_whole and line.rstrip() == text[len(end.text) :].rstrip())
