"""One optimizer step: its rows and random numbers, the loss of its micro-batches, clipping and AdamW."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.command import first_line
from common.devices import autocast, choose_dtype, is_out_of_memory
from common.loss import next_token_nats
from data import TokenBatches
from model import GPTSingleHead, flat_pairs, token_nats
from training.checkpoint import Progress
from training.config import TrainConfig
from training.processes import all_sum, is_main, rank, world_size

logger = logging.getLogger(__name__)

STEPS_WORTH_COMPILING = 1000  # on a GPU, where compiling takes about a minute


def epoch_order(rows: int, epoch: int, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return row numbers [steps, *shape] of one epoch: each row once, and -1 where the last step has no rows left.

    A step's rows depend only on the product of `shape`, not on its division into micro-batches and processes.
    """
    generator = torch.Generator().manual_seed((seed + 1_000_003 * epoch) % 2**63)
    per_step = math.prod(shape)
    order = torch.full((math.ceil(rows / per_step) * per_step,), -1)
    order[:rows] = torch.randperm(rows, generator=generator)
    return order.view(-1, *shape)


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step, so that a restarted run draws the same dropout and need not save any generator."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + rank()) % 2**63)


class TrainStep:
    """Makes optimizer steps on a model. Nothing in a step waits for the device; `read_sums` does.

    Args:
        model: on the device to train on.
        config: batch size, precision, learning rate, weight decay, clipping and compilation.

    Attributes:
        dtype: of the matrix products.
        optimizer, scaler: what a restart needs besides the weights.
        epoch_sums, recent_sums: nats and targets [2] float64 of this process, in this epoch and since the last entry
            in the log. They stay on the device, so that adding to them waits for nothing.
    """

    def __init__(self, model: GPTSingleHead, config: TrainConfig):
        self.model, self.config = model, config
        self.dtype = choose_dtype(config.precision, model.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},  # biases and norms
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, eps=1e-6, fused=True)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=self.dtype == torch.float16)
        self._summed_loss: nn.Module = SummedLoss(model)
        self._set_sums(Progress())

    def prepare(self, batches: TokenBatches, progress: Progress) -> None:
        """Continue from `progress`. Distribute the loss and, if asked, compile it, tried on rows of `batches`."""
        self._set_sums(progress)
        loss = self._summed_loss
        if world_size() > 1:
            devices = [self.model.device] if self.model.device.type == "cuda" else None
            self._summed_loss = DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)
        if self.config.compile == "on":
            loss.set_compile_mode(self._compile_mode())
            if not self._works(batches):
                loss.set_compile_mode(None)

    def _set_sums(self, progress: Progress) -> None:
        device, own = self.model.device, is_main()  # the sums so far count in one process only
        sums = torch.tensor([progress.epoch_nats, progress.epoch_targets], dtype=torch.float64)
        self.epoch_sums = (sums * own).to(device)
        sums = torch.tensor([progress.recent_nats, progress.recent_targets], dtype=torch.float64)
        self.recent_sums = (sums * own).to(device)
        self._bad_steps = torch.zeros(2, dtype=torch.int64, device=device)  # in a row, and since the last reading

    def __call__(self, batches: TokenBatches, rows: Tensor, lr: float) -> Tensor:
        """One step over the rows [micro-batches, processes, B] of `batches`; returns the gradient's norm, a scalar.

        The loss is the mean over all targets of the step, no matter how they are divided into micro-batches and
        processes. A step whose gradient is not finite changes no weights.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        targets = batches.count_targets(rows)
        step_nats = torch.zeros((), device=rows.device)
        for i, micro_batch in enumerate(rows):
            ids, labels = batches.gather(micro_batch[rank()])
            with self._gradients_shared(i == len(rows) - 1):
                with autocast(rows.device, self.dtype):
                    nats = self._summed_loss(ids, labels)
                # DistributedDataParallel averages over processes, but we need the sum. Adding 0 * nats makes every
                # gradient not finite if the loss is not, and so in all processes.
                self.scaler.scale(nats * (world_size() / targets + 0 * nats.detach())).backward()
            step_nats += nats.detach()
        self.scaler.unscale_(self.optimizer)
        norm = self._update_weights()
        own_targets = batches.count_targets(rows[:, rank()])
        bad = ~norm.isfinite()
        sums = torch.stack((step_nats, own_targets)).double().masked_fill(bad, 0)
        self.epoch_sums += sums
        self.recent_sums += sums
        self._bad_steps[0] = (self._bad_steps[0] + 1) * bad
        self._bad_steps[1] += bad
        return norm

    def _update_weights(self) -> Tensor:
        """Clip the gradient and update the weights. Return the gradient's norm.

        Fused AdamW divides the gradient by `grad_scale` while it reads it, so clipping needs no pass of its own. If
        `found_inf` is 1, it leaves weights and moments unchanged.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.optimizer.grad_scale = (norm / self.config.max_grad_norm).clamp(min=1)
        if not self.scaler.is_enabled():  # the scaler detects values that are not finite by itself
            self.optimizer.found_inf = (~norm.isfinite()).float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def _gradients_shared(self, is_last: bool) -> AbstractContextManager:
        """Exchange gradients between processes only with the last micro-batch of an optimizer step."""
        return nullcontext() if is_last or world_size() == 1 else self._summed_loss.no_sync()

    def read_sums(self, progress: Progress) -> int:
        """Write the sums of all processes into `progress`; return how many steps in a row were not finite.

        The one place where training waits for the device.
        """
        sums = all_sum(torch.cat((self.epoch_sums, self.recent_sums))).tolist()
        progress.epoch_nats, progress.epoch_targets, progress.recent_nats, progress.recent_targets = sums
        progress.tokens_seen = progress.tokens_before_epoch + int(progress.epoch_targets)
        in_a_row, since = self._bad_steps.tolist()
        progress.skipped_steps += since
        self._bad_steps[1] = 0
        return in_a_row

    def _compile_mode(self) -> str:
        # The kernels of a small batch finish sooner than they can be launched one by one, so CUDA graphs launch them
        # together. Their outputs, including gradients, are valid only until the next pass.
        config = self.config
        is_small = config.per_gpu_train_batch_size * config.max_seq_length <= 8192
        as_graph = self.model.device.type == "cuda" and is_small and config.accumulation_steps == world_size() == 1
        logger.info("  compiling the model%s", ", with CUDA graphs" if as_graph else "")
        return "reduce-overhead" if as_graph else "default"

    def _works(self, batches: TokenBatches) -> bool:
        """Whether the compiled loss can be computed in all processes. Tries one batch and changes nothing.

        It is tried through DistributedDataParallel: where torch.compile sees that, it cuts the graph so that gradients
        cross the network during the backward pass.
        """
        device = self.model.device
        ids, labels = batches.gather(torch.zeros(self.config.per_gpu_train_batch_size, dtype=torch.long, device=device))
        self.model.train()
        failures = torch.zeros((), device=device)
        try:
            for _ in range(3):  # a CUDA graph is recorded in the second pass
                with self._gradients_shared(False):
                    with autocast(device, self.dtype):
                        nats = self._summed_loss(ids, labels)
                    nats.backward()
                self.model.zero_grad()
        except Exception as error:  # of many kinds: no compiler, a broken one, an unknown GPU
            if is_out_of_memory(error):
                raise
            logger.warning("  not compiled, so slower (%s)", first_line(error))
            failures += 1
        self.model.zero_grad()
        return not all_sum(failures)


class SummedLoss(nn.Module):
    """Summed loss of a micro-batch ids, labels [B, T]: scalar, float32, in nats."""

    def __init__(self, model: GPTSingleHead):
        super().__init__()
        self.model = model
        self.set_compile_mode(None)

    def set_compile_mode(self, mode: str | None) -> None:
        """Compile what comes before the last layer in this mode of torch.compile; None: not at all."""
        body = self.model.hidden_states if self.model.has_plain_head else self.model.logits
        self._body = torch.compile(body, dynamic=False, mode=mode) if mode else body

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        if not self.model.has_plain_head:
            return token_nats(self._body(ids), labels).sum()
        hidden, targets = flat_pairs(self._body(ids), labels)
        return next_token_nats(hidden, self.model.gpt.lm_head.weight, targets)


def worth_compiling(device: torch.device, total_steps: int) -> bool:
    """What `--compile auto` means. Not on a CPU, where compiled steps are no faster (docs/measurements.md).

    All steps of the run count, not those that are left: a restart must not change how the rest is computed.
    """
    return device.type == "cuda" and total_steps >= STEPS_WORTH_COMPILING
