"""ModelTrainer: the training loop of a GPTSingleHead, from the first step or from where an earlier process stopped."""

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.command import InputError
from common.files import atomic_write
from data import SrcCodeDataset, TokenBatches
from evaluation.loss import SingleCLMEvaluator, windows_at_once
from model import GPTSingleHead, use_fast_kernels
from training.checkpoint import Progress, RunSaver, check_flags, check_progress, read_progress, restore_checkpoint
from training.config import TrainConfig
from training.fim import FimEpochs, MiddleEvaluator
from training.processes import StopSignal, all_sum, is_main, world_size
from training.schedule import lr_factor
from training.step import TrainStep, epoch_order, seed_step, worth_compiling
from training.tracking import Metrics

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10  # after this many non-finite steps in a row, a run will probably not recover


class ModelTrainer:
    """Trains `model` on `train_dataset` and keeps the best model on `dev_dataset`. It can be killed at any moment.

    Args:
        model: on the device to train on. To continue an earlier run, the model loaded from `<run_folder>/last`.
        train_dataset, dev_dataset: of the same max_seq_length.
        dev_evaluator: measures the model; its `early_stop_on` chooses the best.
        config: the flags of train.py.
        run_folder: everything is written here; docs/flags.md lists the files.
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
        self.model, self.run_folder = model, run_folder
        use_fast_kernels(model.gpt)
        self.dev_evaluator = copy.copy(dev_evaluator)
        self.dev_evaluator.dataset = dev_evaluator.dataset or dev_dataset
        self._contents = {"train_data": train_dataset.content, "dev_data": dev_dataset.content}
        self.batches = TokenBatches(train_dataset, model.pad_id, model.device)
        # A step is at most the whole dataset: more would only be padding, which takes memory.
        per_gpu = min(config.per_gpu_train_batch_size, math.ceil(len(self.batches) / world_size()))
        passes = min(config.accumulation_steps, math.ceil(len(self.batches) / per_gpu / world_size()))
        self.config = config = replace(config, per_gpu_train_batch_size=per_gpu, accumulation_steps=passes)
        self.batch = per_gpu * passes * world_size()
        self.steps_per_epoch = math.ceil(len(self.batches) / self.batch)
        self.total_steps = config.num_epochs_train * self.steps_per_epoch
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self.warmup_steps = math.ceil(self.total_steps * config.warmup_ratio)
        self.fim = self.middles = None
        if config.fim_rate or config.context_rate:
            self.fim = FimEpochs(train_dataset, model, config, self._order)
        if config.fim_rate:
            self.middles = MiddleEvaluator(dev_dataset, model, config.dev_windows)
        self.step = TrainStep(model, config)
        self.progress = Progress()
        self.stop = StopSignal()

    def train(self) -> dict | None:
        """Run to the end of the last epoch, to max_steps, to the early stop, or to a SIGINT or SIGTERM.

        Returns:
            ck_report.json: where the best model was found, and its scores; None if there was no evaluation.
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
        with self.stop, bar, closing(self.metrics):
            if self._is_evaluated_now() and self.progress.evaluated_step != self.progress.step:
                self._evaluate()  # a signal had interrupted this evaluation
            while not self._is_over() and not self.stop.signal:
                self._train_epoch(bar)
        self._log_end()
        return self.progress.report

    def _begin(self) -> None:
        """Restore the earlier run, if there is one to continue, and prepare everything that depends on it."""
        last, compile = self.run_folder / "last", self.config.compile
        saved = read_progress(last) if self.config.restore_training else None
        if compile == "auto" and saved:  # a continued run computes as it did before
            compile = saved[1].get("compile", "auto")
        if compile == "auto":
            compile = "on" if worth_compiling(self.model.device, self.total_steps) else "off"
        self.step.config = replace(self.config, compile=compile)
        flags = asdict(self.step.config) | {"batch": self.batch} | self._contents
        if saved:
            self.progress = saved[0]
            changed = check_flags(self.run_folder, saved[1], flags)
            check_progress(self.progress, self.steps_per_epoch, last)
            restore_checkpoint(last, self.model, self.step.optimizer, self.step.scaler)
            logger.info("continuing after step %d of %s%s", self.progress.step, last, changed)
        if all_sum(torch.tensor(self.progress.step, device=self.model.device)) != self.progress.step * world_size():
            raise InputError(
                f"{self.run_folder}: not all machines see the same saved state; put model/ on a shared disk"
            )
        if is_main():
            with atomic_write(self.run_folder / "hyperparams.json") as file:
                json.dump(asdict(self.config), file, indent=2)
        self.metrics = Metrics(self.run_folder, self.config, self.progress)
        self.saver = RunSaver(self.run_folder, self.model, self.step.optimizer, self.step.scaler, self.config, flags)
        self.step.prepare(self.batches, self.progress)
        self._flops_per_token = self.model.flops_per_token()
        self._log_start()
        self._clock, self._clock_tokens = time.perf_counter(), self.progress.tokens_seen

    def _train_epoch(self, bar: tqdm) -> None:
        """Train from the current place in the epoch to the end of the epoch or of the run."""
        config, progress = self.config, self.progress
        if self.fim:
            self.batches = self.fim.batches(progress.epoch)
        self.model.train()
        for rows in self._steps(progress.epoch):
            lr = config.lr * lr_factor(config.scheduler, progress.step, self.warmup_steps, self.total_steps)
            seed_step(config.seed, progress.step)
            grad_norm = self.step(self.batches, rows, lr)
            progress.step += 1
            progress.epoch_step += 1
            bar.total = self.total_steps  # an evaluator may shorten the run, as adapt.py's does
            bar.update()
            if progress.step % config.logging_steps == 0 or progress.step == self.total_steps:
                self._log_training(bar, lr, grad_norm)
            if self._is_evaluated_now():
                self._evaluate()
            elif config.save_steps and progress.step % config.save_steps == 0:
                self._read_sums()
                self._save()
            if self.stop.signal or self._is_over():
                return
            if self.stop.agreed():
                self._read_sums()
                self._save()
                return
        self._read_sums()
        progress.tokens_before_epoch = progress.tokens_seen
        progress.epoch += 1
        progress.epoch_step = 0
        self.step.epoch_sums.zero_()

    def _steps(self, epoch: int) -> Iterator[Tensor]:
        """Yield the row numbers [micro-batches, processes, B], on the device, of each remaining step of an epoch."""
        order = self._order(epoch)
        micro_batches = (order >= 0).any(-1).any(-1).sum(-1).tolist()  # an epoch's last step may have fewer
        for rows, number in zip(order.to(self.model.device), micro_batches, strict=True):
            yield rows[:number]

    def _order(self, epoch: int) -> Tensor:
        """Return row numbers [steps, micro-batches, processes, B] of an epoch's remaining steps."""
        config, progress = self.config, self.progress
        shape = (config.accumulation_steps, world_size(), config.per_gpu_train_batch_size)
        order = epoch_order(len(self.batches), epoch, config.seed, shape)
        first = progress.epoch_step if epoch == progress.epoch else 0
        return order[first : max(0, self.total_steps - epoch * self.steps_per_epoch)]

    def _is_evaluated_now(self) -> bool:
        step = self.progress.step
        return step % self.config.evaluation_steps == 0 or step == self.total_steps

    def _is_over(self) -> bool:
        return self.progress.step >= self.total_steps or self._stopped_early()

    def _stopped_early(self) -> bool:
        return self.progress.early_stop_count >= self.config.early_stop

    def _read_sums(self) -> None:
        if (bad := self.step.read_sums(self.progress)) >= MAX_BAD_STEPS:
            raise self._diverged(f"the loss or its gradient was not finite {bad} steps in a row")

    def _log_training(self, bar: tqdm, lr: float, grad_norm: Tensor) -> None:
        self._read_sums()
        self.step.recent_sums.zero_()
        progress = self.progress
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
        """Measure on dev, keep the model if it is the best so far, log, and save if that is due.

        A signal interrupts the measurement; after a restart it is done first.
        """
        started = time.perf_counter()
        self._read_sums()
        progress, evaluator = self.progress, self.dev_evaluator
        scores = evaluator(self.model, lambda: self.stop.noted is not None)
        if scores is None:
            while not self.stop.agreed():  # wait until every process has noted the signal
                pass
            self._save()
            return
        if not math.isfinite(scores["loss"]):
            raise self._diverged("the loss on dev is not finite")
        progress.evaluated_step = progress.step
        score = -scores[evaluator.early_stop_on]
        if score > progress.best_score:
            progress.best_score, progress.early_stop_count = score, 0
            progress.report = self._report(scores)
            self.saver.keep_best()
        else:
            progress.early_stop_count += 1
        self._log_evaluation(scores)
        if self._is_over() or self.saver.is_due:
            self._save()
        else:
            self.saver.put_best_aside()
        self._clock += time.perf_counter() - started  # tokens_per_second counts training only

    def _report(self, scores: dict[str, float]) -> dict:
        """ck_report.json, if the model of this step is the best one."""
        return {
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

    def _log_evaluation(self, scores: dict[str, float]) -> None:
        progress, evaluator = self.progress, self.dev_evaluator
        values = {f"eval_{name}_dev": value for name, value in scores.items() if name not in ("loss", "tokens")}
        if self.middles:
            batch_size = windows_at_once(self.model, self.model.max_seq_length, evaluator.batch_size)
            batch_size = min(batch_size, evaluator.batch_size)  # on a GPU it would not be reduced if memory is short
            values["loss_middle_dev"] = self.middles(self.model, batch_size, self.step.dtype)
        values |= {"loss_dev": scores["loss"], f"best_score_for_{evaluator.early_stop_on}": progress.best_score}
        self.metrics.log(values, progress.step)
        logger.info("   ***** Evaluation report *****")
        logger.info("  Epoch = %d/%d", progress.epoch + 1, self.epochs)
        logger.info("  Steps = %d/%d", progress.step, self.total_steps)
        logger.info("  Early stop count = %d/%d", progress.early_stop_count, self.config.early_stop)
        logger.info("  Best score (%s) = %s", evaluator.early_stop_on, progress.best_score)
        logger.info("  dev_loss = %.6f || dev_eval_scores = %s", scores["loss"], scores)
        logger.info("  train_loss = %s", progress.epoch_nats / max(progress.epoch_targets, 1))

    def _save(self) -> None:
        if is_main():
            self.metrics.flush()  # so that no event up to this step is missing after a restart
            self.saver.save(self.progress)

    def _diverged(self, what: str) -> InputError:
        if is_main():
            self.saver.save_best(self.progress)
        report = self.progress.report
        kept = f"the best model, of step {report['saved_at_total_steps']}, is kept" if report else "no model was kept"
        return InputError(
            f"{self.run_folder}: {what} at step {self.progress.step}; {kept}; start again with a lower --lr than "
            f"{self.config.lr:g}" + " or with --precision fp32" * (self.step.dtype != torch.float32)
        )

    def _log_start(self) -> None:
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.model.parameters())
        logger.info("  Total params: %d", total)
        logger.info("  Trainable params: %d, non-trainable: %d", trainable, total - trainable)
        logger.info("  Device: %s, %s", self.model.device, str(self.step.dtype).removeprefix("torch."))
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
