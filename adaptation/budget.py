"""What a machine can train in a given time: which base model, whether with LoRA, and in which batches."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from model import GPTSingleHead

# Of an optimizer step. SmolLM2-135M learned more from 50 steps of 4 rows (0.596 bits per byte on 64 held-out windows of
# a project) than from 25 steps of 8 rows (0.609).
ROWS, ROW_TOKENS = 4, 512
LEAST_SEEN = 200_000  # that a base model must see; with fewer, a smaller model, which sees more, gains more
LARGEST_WHOLE = 300_000_000  # parameters; a larger model is trained with LoRA
MEMORY_SHARE = 0.8  # of the free memory


class Shape(NamedTuple):
    """The sizes of a model that decide how much memory and time its training takes."""

    name: str
    parameters: int
    layers: int
    width: int
    vocabulary: int

    def memory(self, rows: int, lora: bool, checkpointing: bool = True) -> float:
        """Bytes at the peak of a training step: weights, gradients, Adam's moments, activations and logits."""
        each = 54 if lora else 28  # values of the model's width; with LoRA as measured with Qwen2.5-Coder-0.5B
        activations = self.width * (self.layers + each if checkpointing else each * self.layers)
        # peft keeps three copies of the embedding, because it trains some of its rows.
        weights = 4.5 * self.parameters + 12 * self.vocabulary * self.width if lora else 16 * self.parameters
        return weights + rows * ROW_TOKENS * 4 * (activations + 3 * self.vocabulary)


# The base models to choose from, the best first. The sizes are from their configurations on the Hub.
BASES = (
    Shape("Qwen/Qwen2.5-Coder-1.5B", 1_543_714_304, 28, 1536, 151_936),
    Shape("Qwen/Qwen2.5-Coder-0.5B", 494_032_768, 24, 896, 151_936),
    Shape("HuggingFaceTB/SmolLM2-135M", 134_515_008, 30, 576, 49_152),
)


class Machine(NamedTuple):
    device: str
    cores: int
    memory: int  # free bytes, of the GPU if there is one
    flops: float  # floating-point operations per second in large matrix products


def read_machine() -> Machine:
    import torch

    from common.devices import choose_device, choose_dtype

    device = choose_device()
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else _free_memory()
    n = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(n, n, dtype=choose_dtype("auto", device), device=device)
    (matrix @ matrix)[0, 0].item()  # the first product takes longer
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        (matrix @ matrix)[0, 0].item()  # reading the value waits for a GPU to finish
        products += 1
    return Machine(device.type, _cores(), free, 2 * n**3 * products / (time.perf_counter() - began))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> int:
    """Free bytes under Linux, at most what a container allows; on other systems 4 GiB are assumed."""
    file, limit, used = map(Path, ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"))
    lines = file.read_text().splitlines() if file.is_file() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 4 * 2**30)
    if limit.is_file() and limit.read_text().strip().isdecimal():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def choose_bases(machine: Machine, seconds: float) -> tuple[list[str], list[str]]:
    """Return the base models that this machine can train in `seconds`, best first, and why others are left out."""
    chosen, reasons = [], []
    for base in BASES:
        lora = base.parameters > LARGEST_WHOLE
        # A training step reaches about 60 % of the speed of large matrix products. LoRA computes no weight gradients.
        tokens = 0.6 * machine.flops * seconds / ((4.4 if lora else 6) * base.parameters)
        if (needed := base.memory(1, lora)) > MEMORY_SHARE * machine.memory:
            reasons.append(f"{base.name} needs {needed / 2**30:.1f} GiB")
        elif tokens < LEAST_SEEN:
            reasons.append(f"{base.name} would see only about {tokens:,.0f} tokens in the time")
        else:
            chosen.append(base.name)
    return [*chosen, "tiny"], reasons


def shape_of(model: "GPTSingleHead") -> Shape:
    config, total = model.gpt.config, sum(p.numel() for p in model.gpt.parameters())
    return Shape(config.name_or_path, total, config.num_hidden_layers, config.hidden_size, model.vocabulary_size)


def batch_flags(shape: Shape, machine: Machine, lora: bool) -> dict[str, int | bool]:
    """Return train.py's batch flags: the largest micro-batch that fits the memory, checkpointing only if needed."""
    sizes = [(rows, checkpointing) for checkpointing in (False, True) for rows in (4, 2, 1)]
    fits = (size for size in sizes if shape.memory(size[0], lora, size[1]) <= MEMORY_SHARE * machine.memory)
    rows, checkpointing = next(fits, (1, True))
    return {
        "per_gpu_train_batch_size": rows,
        "accumulation_steps": ROWS // rows,
        "gradient_checkpointing": checkpointing,
    }
