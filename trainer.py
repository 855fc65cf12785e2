"""ModelTrainer: the training loop of a GPTSingleHead, from the first step or from where an earlier process stopped."""

import copy
import json
import logging
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from common.command import InputError
from common.devices import autocast, choose_dtype
from common.files import atomic_write, replace_folder
from data import SrcCodeDataset, TokenBatches
from evaluation.loss import SingleCLMEvaluator
from model import GPTSingleHead, fuse_activations
from training.checkpoint import Progress, one_line_when_full, read_progress, restore_checkpoint, save_checkpoint
from training.config import TrainConfig
from training.fim import FimEpochs, MiddleEvaluator
from training.lora import save_merged
from training.model_card import model_card
from training.processes import StopSignal, all_sum, is_main, rank, world_size
from training.schedule import epoch_order, lr_factor, seed_step
from training.step import parameter_groups, prepare_step
from training.tracking import Metrics

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10  # non-finite steps in a row after which a run cannot be trusted to recover
# What a run can only go on with as it was started: its model, and what decides which windows a step sees.
# "batch" is that of an optimizer step over all processes; how it is divided may change.
FIXED = ("model_select", "dataset_name", "train_data", "dev_data", "seed", "fim_rate", "batch", "max_seq_length")
FIXED += ("lora_r", "lora_alpha")


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
        fuse_activations(model.gpt)
        self.run_folder = run_folder
        self.dev_evaluator = copy.copy(dev_evaluator)
        if dev_evaluator.dataset is None:
            self.dev_evaluator.dataset = dev_dataset
        self._contents = {"train_data": train_dataset.content, "dev_data": dev_dataset.content}
        self.device = model.device
        self.dtype = choose_dtype(config.precision, self.device)
        self.batches = TokenBatches(train_dataset, model.pad_id, self.device)
        # A step is at most the whole dataset: what is beyond would be padding, yet take memory.
        per_gpu = min(config.per_gpu_train_batch_size, math.ceil(len(self.batches) / world_size()))
        passes = min(config.accumulation_steps, math.ceil(len(self.batches) / per_gpu / world_size()))
        self.config = config = replace(config, per_gpu_train_batch_size=per_gpu, accumulation_steps=passes)
        self.batch = config.per_gpu_train_batch_size * config.accumulation_steps * world_size()
        self.steps_per_epoch = math.ceil(len(self.batches) / self.batch)
        self.total_steps = config.num_epochs_train * self.steps_per_epoch
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self.fim = self.middles = None
        if config.fim_rate:
            self.fim = FimEpochs(train_dataset, model, config.fim_rate, config.seed, self._order)
            self.middles = MiddleEvaluator(dev_dataset, model)
        self.warmup_steps = math.ceil(self.total_steps * config.warmup_ratio)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=config.lr, eps=1e-6, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.progress = Progress()
        self.stop = StopSignal()

    def train(self) -> dict | None:
        """Run to the end of the last epoch, to max_steps, to the early stop, or to a SIGINT or SIGTERM.

        Returns:
            the run's report, as ck_report.json: where the best model was found and its scores; None if no evaluation
            was reached.
        Raises:
            InputError: the earlier run cannot be continued with these flags, the loss stays non-finite, or the disk is
                full.
        """
        self._begin()
        bar = tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            desc="training",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 5,  # in a log file or a notebook each refresh is a line
            disable=not is_main(),
        )
        with self.stop, bar:
            try:
                if self._is_evaluated_now() and self.progress.evaluated_step != self.progress.step:
                    self._evaluate()  # which a signal had ended
                while self.progress.step < self.total_steps and not self._stopped_early() and not self.stop.signal:
                    self._train_epoch(bar)
            finally:
                self.metrics.close()
        self._log_end()
        return self.progress.report

    def _begin(self) -> None:
        last = self.run_folder / "last"
        if self.config.restore_training and (saved := read_progress(last)) is not None:
            self.progress, flags = saved
            changed = self._check_flags(flags)
            restore_checkpoint(last, self.model, self.optimizer, self.scaler)
            logger.info("going on after step %d of %s%s", self.progress.step, last, changed)
        if all_sum(torch.tensor(self.progress.step, device=self.device)) != self.progress.step * world_size():
            raise InputError(
                f"{self.run_folder}: not all machines see the same saved state; put model/ on a shared disk"
            )
        if is_main():
            with atomic_write(self.run_folder / "hyperparams.json") as file:
                json.dump(asdict(self.config), file, indent=2)
        self.metrics = Metrics(
            self.run_folder,
            first_step=self.progress.step + 1,
            wandb_project=self.config.wandb_project_name if self.config.with_wandb else None,
            wandb_id=self.progress.wandb_id,
            config=asdict(self.config),
            enabled=is_main(),
        )
        self.progress.wandb_id = self.metrics.wandb_id
        # Sums over steps stay on the device, where adding to them waits for nothing; each process has its share.
        saved = self.progress
        self._epoch_sums, self._recent_sums = (
            torch.tensor(sums, dtype=torch.float64, device=self.device) * is_main()
            for sums in ((saved.epoch_nats, saved.epoch_targets), (saved.recent_nats, saved.recent_targets))
        )
        self._bad_steps = torch.zeros(2, dtype=torch.int64, device=self.device)  # in a row, and since the last reading
        self._flops_per_token = self.model.flops_per_token()
        steps_left = self.total_steps - self.progress.step
        self._summed_loss = prepare_step(self.model, self.batches, self.config, self.dtype, steps_left)
        self._log_settings()
        self._clock, self._clock_tokens = time.perf_counter(), self.progress.tokens_seen

    def _order(self, epoch: int) -> Tensor:
        """Row numbers [steps, micro-batches, processes, B] of the steps that are left of an epoch."""
        config, progress = self.config, self.progress
        shape = (config.accumulation_steps, world_size(), config.per_gpu_train_batch_size)
        order = epoch_order(len(self.batches), epoch, config.seed, shape)
        first = progress.epoch_step if epoch == progress.epoch else 0
        return order[first : max(0, self.total_steps - epoch * self.steps_per_epoch)]

    def _train_epoch(self, bar: tqdm) -> None:
        """Train from the run's place in its epoch to the end of that epoch, or of the run."""
        config, progress = self.config, self.progress
        order = self._order(progress.epoch).to(self.device)
        if self.fim:
            self.batches = self.fim.batches(progress.epoch)
        self.model.train()
        for step_rows in order:
            lr = config.lr * lr_factor(config.scheduler, progress.step, self.warmup_steps, self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            seed_step(config.seed, progress.step, rank())
            left = len(self.batches) - progress.epoch_step * self.batch  # an epoch's last step may be smaller
            grad_norm = self._train_step(step_rows[: math.ceil(left / (self.batch // config.accumulation_steps))])
            progress.step += 1
            progress.epoch_step += 1
            bar.update()
            is_last = progress.step == self.total_steps
            if progress.step % config.logging_steps == 0 or is_last:
                self._log_training(bar, lr, grad_norm)
            if self._is_evaluated_now():
                self._evaluate()
            elif config.save_steps and progress.step % config.save_steps == 0:
                self._save_state()
            if self.stop.signal or is_last or self._stopped_early():
                return
            if self.stop.agreed():
                self._save_state()
                return
        self._read_sums()
        progress.tokens_before_epoch = progress.tokens_seen
        progress.epoch += 1
        progress.epoch_step = 0
        self._epoch_sums.zero_()

    def _train_step(self, step_rows: Tensor) -> Tensor:
        """One optimizer step over the rows [micro-batches, processes, B]; returns the gradient's norm.

        The loss is the mean over all targets of the step, however they fall into micro-batches and processes. Nothing
        here waits for the device.
        """
        targets = self.batches.count_targets(step_rows)
        step_nats = torch.zeros((), device=self.device)
        for i, rows in enumerate(step_rows):
            ids, labels = self.batches.gather(rows[rank()])
            with self._gradients_shared(i == len(step_rows) - 1):
                with autocast(self.device, self.dtype):
                    nats = self._summed_loss(ids, labels)
                # DistributedDataParallel takes the mean over processes, where the sum is wanted. A loss that is not
                # finite makes every gradient so, and thereby in all processes.
                self.scaler.scale(nats * (world_size() / targets + 0 * nats.detach())).backward()
            step_nats += nats.detach()
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        bad = ~grad_norm.isfinite()
        if not self.scaler.is_enabled():  # which has the optimizer skip such a step by itself
            self.optimizer.found_inf = bad.float()  # fused AdamW then leaves weights and moments as they are
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        own_targets = self.batches.count_targets(step_rows[:, rank()])
        sums = torch.stack((step_nats, own_targets)).double().masked_fill(bad, 0)
        self._epoch_sums += sums
        self._recent_sums += sums
        self._bad_steps[0] = (self._bad_steps[0] + 1) * bad
        self._bad_steps[1] += bad
        return grad_norm

    def _gradients_shared(self, is_last: bool) -> AbstractContextManager:
        """Gradients cross the network once an optimizer step, with its last micro-batch."""
        return nullcontext() if is_last or world_size() == 1 else self._summed_loss.no_sync()

    def _read_sums(self) -> None:
        """Bring the device's sums into `progress`: the one place where training waits for the device."""
        progress = self.progress
        sums = all_sum(torch.cat((self._epoch_sums, self._recent_sums))).tolist()
        progress.epoch_nats, progress.epoch_targets, progress.recent_nats, progress.recent_targets = sums
        progress.tokens_seen = progress.tokens_before_epoch + int(progress.epoch_targets)
        in_a_row, since = self._bad_steps.tolist()
        progress.skipped_steps += since
        self._bad_steps[1] = 0
        if in_a_row >= MAX_BAD_STEPS:
            raise self._diverged(f"the loss or its gradient was not finite {in_a_row} steps in a row")

    def _log_training(self, bar: tqdm, lr: float, grad_norm: Tensor) -> None:
        self._read_sums()
        progress = self.progress
        self._recent_sums.zero_()
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        tokens, self._clock_tokens = progress.tokens_seen - self._clock_tokens, progress.tokens_seen
        values = {
            "loss_train": progress.epoch_nats / max(progress.epoch_targets, 1),
            "loss_train_recent": progress.recent_nats / max(progress.recent_targets, 1),
            "lr": lr,
            "grad_norm": grad_norm.item(),
            "tokens_per_second": tokens / seconds,
            "tflops": tokens / seconds * self._flops_per_token / 1e12,
            "tokens_seen": progress.tokens_seen,
            "skipped_steps": progress.skipped_steps,
        }
        self.metrics.log(values, progress.step)
        bar.set_postfix_str(f"loss {values['loss_train_recent']:.3f}, {values['tokens_per_second']:,.0f} tokens/s")

    def _evaluate(self) -> None:
        """Measure on dev, keep the model if it is the best so far, log, and save the state.

        A signal ends the measuring, which is then done first after a restart.
        """
        started = time.perf_counter()
        self._read_sums()
        progress, evaluator = self.progress, self.dev_evaluator
        scores = evaluator(self.model, lambda: self.stop.noted is not None)
        if scores is None:
            while not self.stop.agreed():  # not every process has noted the signal
                pass
            self._save_state()
            return
        if not math.isfinite(scores["loss"]):
            raise self._diverged("the loss on dev is not finite")
        progress.evaluated_step = progress.step
        score = -scores[evaluator.early_stop_on]
        if score > progress.best_score:
            progress.best_score, progress.early_stop_count = score, 0
            self._save_best(scores)
        else:
            progress.early_stop_count += 1
        values = {f"eval_{name}_dev": value for name, value in scores.items() if name not in ("loss", "tokens")}
        if self.middles:
            values["loss_middle_dev"] = self.middles(self.model, evaluator.batch_size, self.dtype)
        values |= {"loss_dev": scores["loss"], f"best_score_for_{evaluator.early_stop_on}": progress.best_score}
        self.metrics.log(values, progress.step)
        logger.info("   ***** Evaluation report *****")
        logger.info("  Epoch = %d/%d", progress.epoch + 1, self.epochs)
        logger.info("  Steps = %d/%d", progress.step, self.total_steps)
        logger.info("  Early stop count = %d/%d", progress.early_stop_count, self.config.early_stop)
        logger.info("  Best score (%s) = %s", evaluator.early_stop_on, progress.best_score)
        logger.info("  dev_loss = %.6f || dev_eval_scores = %s", scores["loss"], scores)
        logger.info("  train_loss = %s", progress.epoch_nats / max(progress.epoch_targets, 1))
        self._save_state()
        self._clock += time.perf_counter() - started  # tokens_per_second is of training alone

    def _save_best(self, scores: dict[str, float]) -> None:
        self.progress.report = {
            "training_examples": len(self.batches),
            "evaluation_steps": self.config.evaluation_steps,
            "train_batch_size": self.batch,
            "epoch": self.progress.epoch + 1,
            "total_epochs": self.epochs,
            "steps": self.progress.epoch_step,
            "saved_at_total_steps": self.progress.step,
            "steps_per_epoch": self.steps_per_epoch,
            "tokens_seen": self.progress.tokens_seen,
            "eval_scores_on_dev": scores,
        }
        if not is_main():
            return
        best = self.run_folder / "0_GPTSingleHead"
        with one_line_when_full(best), replace_folder(best) as folder:
            save_merged(self.model, folder)
            progress = self.progress
            card = model_card(self.config, scores, progress.step, progress.tokens_seen, self.model.fim_rate)
            (folder / "README.md").write_text(card, encoding="utf-8")
        with atomic_write(self.run_folder / "ck_report.json") as file:
            json.dump(self.progress.report, file, indent=2)

    def _save_state(self) -> None:
        self._read_sums()
        if not is_main():
            return
        self.metrics.flush()  # so that no event up to this step can be missing after a restart
        progress = {"run": asdict(self.progress), "flags": self._settings()}
        save_checkpoint(self.run_folder / "last", self.model, self.optimizer, self.scaler, progress)

    def _settings(self) -> dict:
        return asdict(self.config) | {"batch": self.batch} | self._contents

    def _check_flags(self, saved: dict) -> str:
        """What to say of the flags that have changed since the run was started.

        Raises:
            InputError: the run cannot go on with these.
        """
        saved = (now := self._settings()) | saved  # which an earlier version wrote without the newer flags
        for name in FIXED:
            if saved[name] != now[name]:
                words = "a batch (per GPU x accumulation_steps x GPUs) of" if name == "batch" else f"--{name}"
                change = f"was started with {words} {saved[name]}, not {now[name]}"
                if name in self._contents:
                    change = f"--dataset_name {self.config.dataset_name} has been converted anew since it was started"
                raise InputError(f"{self.run_folder}: {change}; go on with the same, or start under another --run_name")
        free = now.keys() - {*FIXED, "restore_training", "overwrite", "accumulation_steps", "per_gpu_train_batch_size"}
        changed = [f"--{name} {now[name]} (was {saved[name]})" for name in sorted(free) if saved[name] != now[name]]
        return f"; changed: {', '.join(changed)}" if changed else ""

    def _diverged(self, what: str) -> InputError:
        report = self.progress.report
        kept = f"the best model, of step {report['saved_at_total_steps']}, is kept" if report else "no model was kept"
        return InputError(
            f"{self.run_folder}: {what} at step {self.progress.step}; {kept}; start again with a lower --lr than "
            f"{self.config.lr:g}" + " or with --precision fp32" * (self.dtype != torch.float32)
        )

    def _is_evaluated_now(self) -> bool:
        step = self.progress.step
        return step % self.config.evaluation_steps == 0 or step == self.total_steps

    def _stopped_early(self) -> bool:
        return self.progress.early_stop_count >= self.config.early_stop

    def _log_settings(self) -> None:
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.model.parameters())
        logger.info("  Total params: %d", total)
        logger.info("  Trainable params: %d, non-trainable: %d", trainable, total - trainable)
        logger.info("  Device: %s, %s", self.device, str(self.dtype).removeprefix("torch."))
        logger.info("  Num of training examples = %d", len(self.batches))
        logger.info("  Num of development examples = %d", len(self.dev_evaluator.dataset))
        logger.info("  Steps per epoch = %d, epochs = %d", self.steps_per_epoch, self.epochs)
        logger.info("  Batch = %d windows on %d processes", self.batch, world_size())
        logger.info("  Total optimization steps = %d, warm-up steps = %d", self.total_steps, self.warmup_steps)
        logger.info("  Output path: %s", self.run_folder)

    def _log_end(self) -> None:
        if self._stopped_early():
            logger.info("stopped early: %d evaluations without a better dev score", self.progress.early_stop_count)
        if report := self.progress.report:
            logger.info(
                "best model: dev perplexity %.4f at step %d, in %s",
                report["eval_scores_on_dev"]["perplexity"],
                report["saved_at_total_steps"],
                self.run_folder / "0_GPTSingleHead",
            )
