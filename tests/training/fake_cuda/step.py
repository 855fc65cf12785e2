"""One optimizer step and one evaluation batch on fake CUDA tensors: fails at the first operation that needs a value.

step.py GUARD_LIBRARY MODEL_FOLDER MICRO_BATCHES BATCH PRECISION...

"plain" after the precisions: the loss does without its kernel.

Prints as JSON, for each precision, the kernels of the step, their bytes read and written, and the same for a batch of
evaluation.
"""

import contextlib
import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from unittest.mock import patch

TORCH = Path(importlib.util.find_spec("torch").origin).parent
for library in (TORCH / "lib/libc10.so", TORCH / "lib/libtorch_cpu.so", sys.argv[1]):
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # before torch looks for its hooks

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import torch  # noqa: E402
import torch.utils._foreach_utils as foreach_utils  # noqa: E402
import transformers.utils.import_utils as transformers_utils  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from common import loss  # noqa: E402
from data import TokenBatches  # noqa: E402
from model import GPTSingleHead, use_fast_kernels  # noqa: E402
from training.config import TrainConfig  # noqa: E402
from training.step import TrainStep  # noqa: E402

NO_KERNEL = ("view", "detach", "transpose", "aten.t.", "slice", "select", "expand", "squeeze", "split", "permute")
NO_KERNEL += ("unbind", "alias", "empty", "unfold", "reshape", "profiler", "prim.")


class Counted(TorchDispatchMode):
    """Kernels launched, and bytes of the tensors that they are given and return."""

    def __init__(self):
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if not any(name in str(function) for name in NO_KERNEL):
            tensors = [x for x in tree_leaves((arguments, options, result)) if isinstance(x, torch.Tensor)]
            self.kernels += 1
            if str(function).startswith("autocoder") and arguments[-1]:  # which writes the logits in place
                tensors.append(arguments[0])
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def main() -> None:
    _, _, folder, micro_batches, batch, *precisions = sys.argv
    with_kernel = "plain" not in precisions
    counted = {
        precision: trace(folder, int(micro_batches), int(batch), precision, with_kernel)
        for precision in precisions
        if precision != "plain"
    }
    print(json.dumps(counted))


def trace(folder: str, micro_batches: int, batch: int, precision: str, with_kernel: bool) -> dict[str, list[int]]:
    capability = (7, 5) if precision == "fp16" else (9, 0)
    fake = {
        "is_available": lambda: True,
        "get_device_capability": lambda *_: capability,
        "is_bf16_supported": lambda *_, **__: True,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "manual_seed_all": lambda _: None,
    }
    length = 256
    with contextlib.ExitStack() as stack:
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # before the patches: it notes that there is no GPU
        for name, value in fake.items():
            stack.enter_context(patch(f"torch.cuda.{name}", value))
        # Otherwise transformers leaves out what would wait for the GPU, and torch what it does with lists of tensors.
        stack.enter_context(patch.object(transformers_utils, "is_fake_tensor", lambda _: False, create=True))
        stack.enter_context(patch.object(loss, "kernel_works", lambda _: with_kernel))
        foreach_utils._foreach_supported_types.append(FakeTensor)
        model = GPTSingleHead(folder, length, from_scratch=True)
        rows = Rows(model, 64, length)
        stack.enter_context(mode)
        for module in model.modules():
            for name, p in list(module._parameters.items()):
                if p is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty_like(p, device="cuda:0"))
        model.gpt.tie_weights()
        use_fast_kernels(model.gpt)
        config = TrainConfig(
            per_gpu_train_batch_size=batch, accumulation_steps=micro_batches, precision=precision, compile="off"
        )
        step = TrainStep(model.train(), config)
        batches = TokenBatches(rows, model.pad_id, "cuda:0")
        order = torch.zeros(micro_batches, 1, batch, dtype=torch.long, device="cuda:0")
        for _ in range(2):  # AdamW makes its state in the first
            with Counted() as training:
                norm = step(batches, order, lr=1e-4)
        assert norm.device.type == "cuda"
        assert step.scaler.is_enabled() == (precision == "fp16")
        ids, labels = batches.gather(order[0, 0])
        autocast = torch.autocast("cuda", step.dtype, step.dtype != torch.float32)
        with torch.inference_mode(), autocast, Counted() as evaluation:
            model.eval().scores(ids, labels)
    return {"training": [training.kernels, training.bytes], "evaluation": [evaluation.kernels, evaluation.bytes]}


class Rows:
    """Stands for a SrcCodeDataset of full windows."""

    def __init__(self, model: GPTSingleHead, rows: int, length: int):
        import numpy as np

        self.max_seq_length = length
        self.tokens = np.zeros((rows, length), np.min_scalar_type(model.vocabulary_size - 1))
        self.lengths = np.full(rows, length, np.int32)


if __name__ == "__main__":
    main()
