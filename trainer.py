"""ModelTrainer: the training loop of a GPTSingleHead, from the first step or from where an earlier process stopped."""

import json
import logging
import math
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from checkpoint import read_progress, restore_checkpoint, save_checkpoint
from common import InputError, atomic_write, replace_folder
from config import TrainConfig
from data import SrcCodeDataset, TokenBatches, pad_id
from evaluate import SingleCLMEvaluator
from metrics import Metrics
from model import IGNORED, GPTSingleHead, autocast, choose_dtype, token_nats

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10  # non-finite steps in a row after which a run cannot be trusted to recover
# Flags that decide which windows a step sees: a run can only go on with the values it was started with.
ORDER_FLAGS = (
    "seed",
    "per_gpu_train_batch_size",
    "accumulation_steps",
    "max_seq_length",
    "dataset_name",
    "model_select",
)


@dataclass
class Progress:
    """How far a run is: what the loop needs to go on, apart from tensors."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    epoch_step: int = 0  # optimizer steps done in this epoch
    tokens_seen: int = 0  # unpadded targets trained on
    epoch_nats: float = 0.0  # summed over this epoch's targets
    epoch_tokens: int = 0
    best_score: float = -math.inf  # minus the dev perplexity (or loss) of the best model
    best_step: int = 0
    early_stop_count: int = 0  # evaluations since then
    skipped_steps: int = 0  # steps whose loss or gradient was not finite
    wandb_id: str | None = None


def lr_factor(scheduler: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at optimizer step `step`, counted from 0.

    The reference takes these five from transformers.optimization, whose hard restarts have one cycle by default,
    which makes them the cosine.
    """
    if scheduler == "constantlr":
        return 1.0
    if step < warmup_steps:
        return step / warmup_steps
    if scheduler == "warmupconstant":
        return 1.0
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    if scheduler == "warmuplinear":
        return left
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))


def epoch_order(rows: int, epoch: int, config: TrainConfig) -> Tensor:
    """Row numbers [steps, accumulation_steps, batch] of one epoch: each row once, -1 where the last step has none."""
    generator = torch.Generator().manual_seed(config.seed + 1_000_003 * epoch)
    shape = (config.accumulation_steps, config.per_gpu_train_batch_size)
    steps = math.ceil(rows / math.prod(shape))
    order = torch.full((steps * math.prod(shape),), -1)
    order[:rows] = torch.randperm(rows, generator=generator)
    return order.view(steps, *shape)


def parameter_groups(model: GPTSingleHead, weight_decay: float) -> list[dict]:
    """AdamW's two groups: matrices decay; vectors, that is biases and normalisation weights, do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


class ModelTrainer:
    """Trains `model` on `train_dataset`, keeps the best on `dev_dataset`, and can be killed at any instant.

    Args:
        model: on the device to train on. To go on with an earlier run it is the one loaded from `<run_folder>/last`.
        train_dataset, dev_dataset: of the same max_seq_length.
        dev_evaluator: measures the model; its `early_stop_on` chooses the best.
        config: the flags of train.py.
        run_folder: where everything is written; see the README for what lies there.
    """

    def __init__(
        self,
        model: GPTSingleHead,
        train_dataset: SrcCodeDataset,
        dev_dataset: SrcCodeDataset,
        dev_evaluator: SingleCLMEvaluator,
        config: TrainConfig,
        run_folder: Path,
    ):
        self.model = model
        self.config = config
        self.run_folder = run_folder
        self.dev_evaluator = dev_evaluator
        if dev_evaluator.dataset is None:
            dev_evaluator.dataset = dev_dataset
        self.device = model.device
        self.dtype = choose_dtype(config.precision, self.device)
        self.batches = TokenBatches(train_dataset, pad_id(model), self.device)
        self.steps_per_epoch = len(epoch_order(len(self.batches), 0, config))
        self.total_steps = config.num_epochs_train * self.steps_per_epoch
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.warmup_steps = math.ceil(self.total_steps * config.warmup_ratio)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=config.lr, eps=1e-6, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.progress = Progress()

    def train(self) -> dict:
        """Run to the end of the last epoch, to max_steps or to the early stop.

        Returns:
            the run's report, as ck_report.json: where the best model was found and its scores.
        Raises:
            InputError: the earlier run cannot be continued with these flags, or the loss stays non-finite.
        """
        self._begin()
        try:
            with tqdm(total=self.total_steps, initial=self.progress.step, desc="training", dynamic_ncols=True) as bar:
                while self.progress.step < self.total_steps and not self._stopped_early():
                    self._train_epoch(bar)
        finally:
            self.metrics.close()
        return self._report()

    def _begin(self) -> None:
        last = self.run_folder / "last"
        if self.config.restore_training and (saved := read_progress(last)) is not None:
            self._check_flags(saved["flags"])
            self.progress = Progress(**saved["run"])
            restore_checkpoint(last, self.model, self.optimizer, self.scaler)
            logger.info("going on after step %d of %s", self.progress.step, last)
        else:
            for seed in (random.seed, np.random.seed, torch.manual_seed):
                seed(self.config.seed)
            self.run_folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.run_folder / "hyperparams.json") as file:
            json.dump(asdict(self.config), file, indent=2)
        self.metrics = Metrics(
            self.run_folder,
            first_step=self.progress.step + 1,
            wandb_project=self.config.wandb_project_name if self.config.with_wandb else None,
            wandb_id=self.progress.wandb_id,
            config=asdict(self.config),
        )
        self.progress.wandb_id = self.metrics.wandb_id
        # Sums over training steps stay on the device, where adding to them waits for nothing.
        self._epoch_sums = torch.tensor([self.progress.epoch_nats, self.progress.epoch_tokens], dtype=torch.float64)
        self._epoch_sums = self._epoch_sums.to(self.device)
        self._recent_sums = torch.zeros_like(self._epoch_sums)
        self._bad_steps = torch.zeros(2, dtype=torch.int64, device=self.device)  # in a row, and since the last reading
        self._clock = time.perf_counter()
        self._nats = self._compiled() if self._worth_compiling() else self._eager_nats
        self._log_settings()

    def _check_flags(self, saved: dict) -> None:
        now = asdict(self.config)
        for name in ORDER_FLAGS:
            if saved[name] != now[name]:
                raise InputError(
                    f"{self.run_folder}: was started with --{name} {saved[name]}, not {now[name]}; "
                    "go on with the same value, or start anew under another --run_name"
                )

    def _log_settings(self) -> None:
        parameters = list(self.model.parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        logger.info("  Total params: %d", total)
        logger.info("  Trainable params: %d", trainable)
        logger.info("  Non-trainable params: %d", total - trainable)
        logger.info("  Device: %s, %s", self.device, str(self.dtype).removeprefix("torch."))
        logger.info("  Num of training examples = %d", len(self.batches))
        logger.info("  Num of development examples = %d", len(self.dev_evaluator.dataset))
        logger.info("  Steps per epoch = %d, epochs = %d", self.steps_per_epoch, self.config.num_epochs_train)
        logger.info("  Total optimization steps = %d, warm-up steps = %d", self.total_steps, self.warmup_steps)
        logger.info("  Output path: %s", self.run_folder)

    def _worth_compiling(self) -> bool:
        """Compilation takes one to two minutes on two CPU cores, and needs a C++ compiler there."""
        if self.config.compile != "auto":
            return self.config.compile == "on"
        has_compiler = self.device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
        return has_compiler and self.total_steps - self.progress.step >= 1000

    def _compiled(self):
        logger.info("  compiling the model; the first step waits for it")
        return torch.compile(self._eager_nats, dynamic=False)

    def _eager_nats(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss of a micro-batch ids, labels [B, T]: scalar, float32, in nats."""
        return token_nats(self.model.logits(ids), labels).sum()

    def _train_epoch(self, bar: tqdm) -> None:
        """Train from the run's place in its epoch to the end of that epoch, or of the run."""
        config, progress = self.config, self.progress
        order = epoch_order(len(self.batches), progress.epoch, config).to(self.device)
        self.model.train()
        for step_rows in order[progress.epoch_step :]:
            lr = config.lr * lr_factor(config.scheduler, progress.step, self.warmup_steps, self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            grad_norm = self._train_step(step_rows)
            progress.step += 1
            progress.epoch_step += 1
            bar.update()
            is_last = progress.step == self.total_steps
            if progress.step % config.logging_steps == 0 or is_last:
                self._log_training(bar, lr, grad_norm)
            if progress.step % config.evaluation_steps == 0 or is_last:
                self._evaluate()
                if is_last or self._stopped_early():
                    return
        progress.epoch += 1
        progress.epoch_step = 0
        self._epoch_sums.zero_()

    def _train_step(self, step_rows: Tensor) -> Tensor:
        """One optimizer step over the rows [accumulation_steps, B]; returns the gradient's norm, on the device.

        The loss is the mean over all targets of the step, however they fall into micro-batches.
        """
        micro_batches = [self.batches.gather(rows) for rows in step_rows if rows[0] >= 0]
        targets = sum((labels[:, 1:] != IGNORED).sum() for _, labels in micro_batches)
        step_nats = torch.zeros((), device=self.device)
        for ids, labels in micro_batches:
            with autocast(self.device, self.dtype):
                nats = self._nats(ids, labels)
            self.scaler.scale(nats / targets).backward()
            step_nats += nats.detach()
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        bad = ~step_nats.isfinite()
        if not self.scaler.is_enabled():  # the scaler skips steps by itself, and a first overflow is its daily bread
            bad |= ~grad_norm.isfinite()
            self.optimizer.found_inf = bad.float()  # fused AdamW then leaves weights and moments as they are
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        counted = torch.stack((step_nats, targets)).double().masked_fill(bad, 0)
        self._epoch_sums += counted
        self._recent_sums += counted
        self._bad_steps[0] = (self._bad_steps[0] + 1) * bad
        self._bad_steps[1] += bad
        return grad_norm

    def _read_sums(self) -> None:
        """Bring the device's sums into `progress`: the one place where training waits for the device."""
        progress = self.progress
        tokens_before = progress.epoch_tokens
        progress.epoch_nats, tokens = self._epoch_sums.tolist()
        progress.epoch_tokens = int(tokens)
        progress.tokens_seen += progress.epoch_tokens - tokens_before
        in_a_row, since = self._bad_steps.tolist()
        progress.skipped_steps += since
        self._bad_steps[1] = 0
        if in_a_row >= MAX_BAD_STEPS:
            raise InputError(
                f"{self.run_folder}: the loss was not finite {in_a_row} steps in a row up to step {progress.step}; the "
                "best model is kept; start again with a lower --lr or with --precision fp32"
            )

    def _log_training(self, bar: tqdm, lr: float, grad_norm: Tensor) -> None:
        self._read_sums()
        recent_nats, recent_tokens = self._recent_sums.tolist()
        self._recent_sums.zero_()
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        values = {
            "loss_train": self.progress.epoch_nats / max(self.progress.epoch_tokens, 1),
            "loss_train_recent": recent_nats / max(recent_tokens, 1),
            "lr": lr,
            "grad_norm": grad_norm.item(),
            "tokens_per_second": recent_tokens / seconds,
            "tokens_seen": self.progress.tokens_seen,
        }
        self.metrics.log(values, self.progress.step)
        bar.set_postfix_str(f"loss {values['loss_train_recent']:.3f}, {values['tokens_per_second']:,.0f} tokens/s")

    def _evaluate(self) -> None:
        """Measure on dev, keep the model if it is the best so far, log, and save the state."""
        started = time.perf_counter()
        self._read_sums()
        progress, evaluator = self.progress, self.dev_evaluator
        scores = evaluator(self.model)
        score = -scores[evaluator.early_stop_on]
        if score > progress.best_score:
            progress.best_score, progress.best_step, progress.early_stop_count = score, progress.step, 0
            self._save_best(scores)
        else:
            progress.early_stop_count += 1
        values = {f"eval_{name}_dev": value for name, value in scores.items() if name not in ("loss", "tokens")}
        values |= {"loss_dev": scores["loss"], f"best_score_for_{evaluator.early_stop_on}": progress.best_score}
        self.metrics.log(values, progress.step)
        logger.info("   ***** Evaluation report *****")
        logger.info("  Epoch = %d/%d", progress.epoch + 1, self.config.num_epochs_train)
        logger.info("  Steps = %d/%d", progress.step, self.total_steps)
        logger.info("  Early stop count = %d/%d", progress.early_stop_count, self.config.early_stop)
        logger.info("  Best score (%s) = %s", evaluator.early_stop_on, progress.best_score)
        logger.info("  dev_loss = %.6f || dev_eval_scores = %s", scores["loss"], scores)
        logger.info("  train_loss = %s", progress.epoch_nats / max(progress.epoch_tokens, 1))
        self._save_state()
        self._clock += time.perf_counter() - started  # tokens_per_second is of training alone

    def _save_best(self, scores: dict[str, float]) -> None:
        with replace_folder(self.run_folder / "0_GPTSingleHead") as folder:
            self.model.save(folder)
        report = {
            "training_examples": len(self.batches),
            "evaluation_steps": self.config.evaluation_steps,
            "train_batch_size": self.config.per_gpu_train_batch_size,
            "epoch": self.progress.epoch + 1,
            "total_epochs": self.config.num_epochs_train,
            "steps": self.progress.epoch_step,
            "saved_at_total_steps": self.progress.step,
            "steps_per_epoch": self.steps_per_epoch,
            "tokens_seen": self.progress.tokens_seen,
            "eval_scores_on_dev": scores,
        }
        with atomic_write(self.run_folder / "ck_report.json") as file:
            json.dump(report, file, indent=2)

    def _save_state(self) -> None:
        self.metrics.flush()  # so that no event up to this step can be missing after a restart
        progress = {"run": asdict(self.progress), "flags": asdict(self.config)}
        save_checkpoint(self.run_folder / "last", self.model, self.optimizer, self.scaler, progress)

    def _stopped_early(self) -> bool:
        return self.progress.early_stop_count >= self.config.early_stop

    def _report(self) -> dict:
        if self._stopped_early():
            logger.info("stopped early: %d evaluations without a better dev score", self.progress.early_stop_count)
        report = json.loads((self.run_folder / "ck_report.json").read_text(encoding="utf-8"))
        best = report["eval_scores_on_dev"]
        logger.info(
            "best model: dev perplexity %.4f at step %d, in %s",
            best["perplexity"],
            report["saved_at_total_steps"],
            self.run_folder / "0_GPTSingleHead",
        )
        return report
