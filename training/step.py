"""What a step computes: the summed loss of a micro-batch, compiled and distributed; what of the weights decays."""

import logging

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.command import first_line
from common.devices import autocast
from common.loss import next_token_nats
from data import TokenBatches
from model import GPTSingleHead, flat_pairs, token_nats
from training.config import TrainConfig
from training.processes import world_size

logger = logging.getLogger(__name__)


def parameter_groups(model: GPTSingleHead, weight_decay: float) -> list[dict]:
    """AdamW's two groups: matrices decay; vectors, that is biases and normalisation weights, do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


class SummedLoss(nn.Module):
    """Summed loss of a micro-batch ids, labels [B, T]: scalar, float32, in nats.

    Args:
        compile_mode: a mode of torch.compile, for what comes before the last layer; None leaves it as it is.
    """

    def __init__(self, model: GPTSingleHead, compile_mode: str | None = None):
        super().__init__()
        self.model = model
        body = model.hidden_states if model.has_plain_head else model.logits
        self._body = torch.compile(body, dynamic=False, mode=compile_mode) if compile_mode else body

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        if not self.model.has_plain_head:
            return token_nats(self._body(ids), labels).sum()
        hidden, targets = flat_pairs(self._body(ids), labels)
        return next_token_nats(hidden, self.model.gpt.lm_head.weight, targets)


def prepare_step(
    model: GPTSingleHead, batches: TokenBatches, config: TrainConfig, dtype: torch.dtype, steps_left: int
) -> nn.Module:
    """The summed loss of `model`, as a function of ids and labels [B, T], compiled and distributed as asked.

    Args:
        dtype: of the matrix products.
        steps_left: how many optimizer steps are to repay a compilation.
    """
    nats = None
    if worth_compiling(config, model.device, steps_left):
        nats = compiled(model, batches, config, dtype)
    nats = nats or SummedLoss(model)
    if world_size() == 1:
        return nats
    devices = [model.device] if model.device.type == "cuda" else None
    return DistributedDataParallel(nats, device_ids=devices, gradient_as_bucket_view=True)


def worth_compiling(config: TrainConfig, device: torch.device, steps_left: int) -> bool:
    """On a CPU nothing is gained (README); on a GPU it takes about a minute."""
    if config.compile != "auto":
        return config.compile == "on"
    return device.type == "cuda" and steps_left >= 1000


def compiled(model: GPTSingleHead, batches: TokenBatches, config: TrainConfig, dtype: torch.dtype) -> SummedLoss | None:
    """The compiled summed loss, tried out on one batch, which changes nothing; None where it fails."""
    # The kernels of a small batch are done sooner than they can be launched one by one, so CUDA graphs launch them
    # together. Their outputs, gradients among them, hold until the next pass alone.
    is_small = config.per_gpu_train_batch_size * config.max_seq_length <= 8192
    as_graph = model.device.type == "cuda" and is_small and config.accumulation_steps == world_size() == 1
    logger.info("  compiling the model%s", ", with CUDA graphs" if as_graph else "")
    nats = SummedLoss(model, "reduce-overhead" if as_graph else "default")
    ids, labels = batches.gather(torch.zeros(config.per_gpu_train_batch_size, dtype=int, device=model.device))
    model.train()
    try:
        for _ in range(3):  # a CUDA graph is recorded in the second pass
            with autocast(model.device, dtype):
                loss = nats(ids, labels)
            loss.backward()
            model.zero_grad()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many kinds: no compiler, a broken one, an unknown GPU
        model.zero_grad()
        logger.warning("  not compiled, so slower (%s)", first_line(error))
        return None
    return nats
