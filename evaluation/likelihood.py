"""How likely a model finds the text that really stood at a place."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from completion.engines.engine import Engine
from completion.prompt import Prompt

if TYPE_CHECKING:
    from model import GPTSingleHead


def load_scorer(folder: Path, engine: Engine) -> Callable[[Prompt, str], float]:
    """A function that gives the bits which a text costs after a prompt; it runs in PyTorch, in 16 bits where fast."""
    from common.devices import choose_device, choose_dtype
    from model import GPTSingleHead

    model = getattr(engine, "model", None)
    if model is None:
        device = choose_device()
        model = GPTSingleHead.load(folder).eval().requires_grad_(False).to(device)
        model.gpt.to(choose_dtype("auto", device))
    return lambda prompt, text: bits_of(model, prompt, text)


def bits_of(model: "GPTSingleHead", prompt: Prompt, text: str) -> float:
    """The bits that a text costs after a prompt.

    As when the model completes, the end of the prompt is spelled again: while it is, only the tokens that spell it can
    be chosen, and the others have no share of the probability.
    """
    import torch

    end = prompt.end
    ids = end.vocabulary.encode(end.text.decode() + text)
    whole = torch.tensor([prompt.ids + ids], device=model.device)
    with torch.no_grad():
        logits = model.gpt(input_ids=whole, logits_to_keep=len(ids) + 1).logits[0, :-1].float()  # [ids, V]
    chosen: tuple[int, ...] = ()
    for place, token in enumerate(ids):
        allowed = end.allowed(chosen) if end.rest(chosen) else []
        if token not in allowed:  # also where the tokenizer cuts the whole text in a way of its own
            break
        others = torch.ones_like(logits[place], dtype=torch.bool).index_fill(0, whole.new_tensor(allowed), False)
        logits[place].masked_fill_(others, -math.inf)
        chosen += (token,)
    log_probs = logits.log_softmax(-1).gather(1, whole[0, -len(ids) :, None])
    return -log_probs.sum().item() / math.log(2)
