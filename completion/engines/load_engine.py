"""Choose the engine: llama.cpp on a CPU, PyTorch on a GPU and for models that llama.cpp cannot run."""

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import InputError
from common.gpu import has_gpu, usable_gpu
from common.model_files import find_pretrained, read_config
from completion.gguf_export.errors import CannotConvert

if TYPE_CHECKING:
    from completion.engines.engine import Engine

IN_PYTORCH = ("fp32", "bf16", "fp16")
ENGINE_PRECISIONS = ("auto", "q8_0", "f16", *IN_PYTORCH)


def load_engine(path: str, precision: str = "auto") -> "Engine":
    """Load the model at `path`. If llama.cpp should run it and cannot, a line on stderr says why.

    Args:
        path: a run folder, a model folder, a known name or a Hub id.
        precision: of ENGINE_PRECISIONS. auto: llama.cpp's 8-bit weights on a CPU, 16 bits in PyTorch on a GPU.
    Raises:
        InputError: there is no such model, or it cannot be run in this precision.
    """
    folder = find_pretrained(path)
    read_config(folder)
    if precision in IN_PYTORCH or (precision == "auto" and has_gpu() and usable_gpu()):
        return _in_pytorch(folder, precision)
    try:
        from completion.engines.llama_engine import LlamaEngine

        return LlamaEngine(folder, "q8_0" if precision == "auto" else precision)
    except ImportError as error:
        reason = f"xllamacpp or gguf cannot be imported ({error})"
    except CannotConvert as error:
        reason = f"llama.cpp cannot run it: {error}"
    if precision != "auto":
        raise InputError(f"{folder}: {reason}; leave out --precision {precision} to run it with PyTorch")
    engine = _in_pytorch(folder, precision)  # before the note: if this fails too, its own error says more
    print(f"note: {folder}: {reason}; PyTorch runs it", file=sys.stderr)
    return engine


def _in_pytorch(folder: Path, precision: str) -> "Engine":
    gc.disable()  # importing makes no garbage, and searching for it among so many objects takes a second
    from common.devices import choose_device, choose_dtype
    from completion.engines.torch_engine import TorchEngine
    from model import GPTSingleHead, use_fast_kernels

    device = choose_device()
    model = GPTSingleHead.load(folder).eval().requires_grad_(False).to(device)
    use_fast_kernels(model.gpt)
    model.gpt.to(choose_dtype(precision, device))
    gc.freeze()  # so that the search for garbage at exit leaves these objects out, too
    gc.enable()
    return TorchEngine(model)
