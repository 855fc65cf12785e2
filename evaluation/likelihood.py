"""How likely a model finds the text that really occurs at a place."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from common.model_files import find_pretrained
from completion.engines.engine import Engine
from completion.engines.load_engine import load_engine
from completion.prompt import Prompt

if TYPE_CHECKING:
    from model import GPTSingleHead


def load_with_scorer(path: str, precision: str = "auto") -> tuple[Engine, Callable[[Prompt, str], float]]:
    """Load a model's engine, and return it with a function (prompt, text) -> bits, which runs in PyTorch.

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
    return engine, lambda prompt, text: bits_of(model, prompt, text)


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
