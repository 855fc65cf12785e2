"""How likely a model finds the text that really occurs at a place."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from completion.engines.engine import Engine
from completion.prompt import Prompt

if TYPE_CHECKING:
    from model import GPTSingleHead


def load_scorer(folder: Path, engine: Engine) -> Callable[[Prompt, str], float]:
    """Return a function (prompt, text) -> bits. It runs in PyTorch, in 16 bits if the hardware is fast at that."""
    from common.devices import choose_device, choose_dtype
    from model import GPTSingleHead

    model = getattr(engine, "model", None)
    if model is None:
        device = choose_device()
        model = GPTSingleHead.load(folder).eval().requires_grad_(False).to(device)
        model.gpt.to(choose_dtype("auto", device))
    return lambda prompt, text: bits_of(model, prompt, text)


def bits_of(model: "GPTSingleHead", prompt: Prompt, text: str) -> float:
    """Return the bits that a text costs after a prompt.

    As in completion, the end of the prompt is generated again. During that, only tokens that spell it are allowed, and
    all other tokens get probability 0.
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
        if token not in allowed:  # also if the tokenizer splits the whole text in another way
            break
        others = torch.ones_like(logits[place], dtype=torch.bool).index_fill(0, whole.new_tensor(allowed), False)
        logits[place].masked_fill_(others, -math.inf)
        chosen += (token,)
    log_probs = logits.log_softmax(-1).gather(1, whole[0, -len(ids) :, None])
    return -log_probs.sum().item() / math.log(2)
