"""Fine-tune a GPT-2-family model on a dataset that dataset/convert.py has written.

python train.py --model_select tiny --dataset_name stdlib --max_steps 200     (a laptop CPU, minutes)
python train.py --recipe report-3                                             (the lab report's third run)
python train.py --restore_training                                            (continue after an interruption)
"""

import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from common.command import InputError, Parser, add_flags, run_command
from common.files import ROOT, dataset_file, recover_folder
from training.config import TrainConfig, find_recipe
from training.run_folder import check_free, hold, is_run, start_files

if TYPE_CHECKING:
    import torch

    from model import GPTSingleHead
    from trainer import ModelTrainer

logger = logging.getLogger("train")


def main() -> None:
    config = read_flags()
    files = [dataset_file(config.dataset_name, split) for split in ("train", "dev")]
    run_folder = ROOT / "model" / config.run_name
    ask_to_overwrite(run_folder, config)
    check_free(run_folder, config)

    import torch

    from common.devices import keep_freed_memory
    from training import processes

    device = processes.start(config.n_gpu, config.visiable_device, config.deterministic)
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.INFO if processes.is_main() else logging.ERROR)
    torch.manual_seed(config.seed)  # for the weights with --from_scratch, and rows of new words
    held = hold(run_folder, config) if processes.is_main() else contextlib.nullcontext()
    with held, processes.others_needed(), memory_advice(device):
        trainer = make_trainer(config, files, run_folder, device)
        if processes.is_main():  # only now, when the new run's input is known to be correct
            start_files(run_folder, config)
        trainer.train()
    if trainer.stop.signal and processes.is_main():
        arguments = [a for a in sys.argv[1:] if a not in ("--overwrite", "--restore_training")]
        command = shlex.join(["python", "train.py", *arguments, "--restore_training"])
        print(f"stopped after step {trainer.progress.step}; go on with: {command}", flush=True)
    processes.finish()
    if trainer.stop.signal == signal.SIGINT:
        sys.exit(130)


def read_flags() -> TrainConfig:
    parser = Parser(__doc__)
    add_flags(parser, TrainConfig)
    flags = parser.parse_args()
    if flags.recipe:  # its settings become the defaults
        parser.set_defaults(**find_recipe(flags.recipe))
        flags = parser.parse_args()
    return TrainConfig(**vars(flags))


def ask_to_overwrite(run_folder: Path, config: TrainConfig) -> None:
    """On a terminal, ask whether an earlier run may be deleted if the flags do not say so; sets `overwrite`."""
    under_torchrun = "LOCAL_RANK" in os.environ  # there each process would ask
    decided = config.overwrite or config.restore_training or under_torchrun or not sys.stdin.isatty()
    if decided or not is_run(run_folder):
        return
    with contextlib.suppress(EOFError):
        answer = input(f"{run_folder} holds an earlier run. Delete it? (y/n) ")
        config.overwrite = answer.strip().lower() == "y"
    if config.overwrite:
        sys.argv.append("--overwrite")  # for the processes that --n_gpu starts


@contextlib.contextmanager
def memory_advice(device: "torch.device") -> Iterator[None]:
    """If memory runs out, raise an InputError that names the flags to lower."""
    from common.devices import is_out_of_memory, peak_memory

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{device}: out of memory (peak {peak_memory(device) / 2**30:.1f} GiB); lower --per_gpu_train_batch_size "
            "and raise --accumulation_steps as much, or lower --max_seq_length; what was saved is kept, "
            "--restore_training goes on"
        ) from None


def make_trainer(config: TrainConfig, files: list[Path], run_folder: Path, device: "torch.device") -> "ModelTrainer":
    """Load and check everything that a run needs; nothing is written to its folder yet.

    Args:
        files: the jsonl files of train and dev.
    """
    from data import SrcCodeDataset
    from evaluation.loss import SingleCLMEvaluator
    from trainer import ModelTrainer
    from training import processes
    from training.tracking import check_wandb

    if config.with_wandb:
        check_wandb(config.wandb_project_name)
    pass_rate = None
    if config.problems:
        from evaluation.pass_rate import PassRate

        pass_rate = PassRate(Path(config.problems), config.max_problems, config.allow_weak_sandbox)
    model = model_to_train(config, run_folder)
    if config.gradient_checkpointing:
        if not model.gpt.supports_gradient_checkpointing:
            raise InputError(
                f"{config.model_select}: transformers has no --gradient_checkpointing for it; leave it out"
            )
        model.gpt.gradient_checkpointing_enable({"use_reentrant": False})
    with processes.main_first():  # the main process packs the datasets
        # The next run with the same data uses this cache too, after a check that it was made from the same file.
        cache = ROOT / ".cache" / config.dataset_name / f"{model.max_seq_length}_{len(model.tokenizer)}"
        datasets = [SrcCodeDataset(file, model, cache / file.stem) for file in files]
    evaluator = SingleCLMEvaluator(
        batch_size=config.dev_batch_size,
        precision=config.precision,
        windows=config.dev_windows,
        pass_rate=pass_rate,
    )
    return ModelTrainer(model.to(device), *datasets, evaluator, config, run_folder)


def model_to_train(config: TrainConfig, run_folder: Path) -> "GPTSingleHead":
    """Load the model of the run's last saved state; if there is none, the model to start from."""
    from common.source_code import SPECIAL_WORDS
    from model import GPTSingleHead
    from training import processes
    from training.fim import learn_fim_words
    from training.lora import ADAPTER, add_lora

    last = run_folder / "last"
    with processes.main_first():
        if processes.is_main():
            recover_folder(last)
    goes_on = config.restore_training and last.is_dir()
    if goes_on and (last / ADAPTER).is_dir() != bool(config.lora_r):
        how = "without" if config.lora_r else "with"
        raise InputError(f"{run_folder}: was started {how} --lora_r; go on so, or start under another --run_name")
    if config.restore_training and not goes_on:
        runs = ", ".join(sorted(folder.parent.name for folder in ROOT.glob("model/*/last"))) or "none"
        logger.warning("%s: no saved state, so this run starts from its first step; with one there are: %s", last, runs)
    if goes_on and not config.lora_r:
        model = GPTSingleHead.load(last)
    else:  # with LoRA, the saved state holds only the trained part of the model
        model = GPTSingleHead(config.model_select, config.max_seq_length, from_scratch=config.from_scratch)
        model.add_special_words(SPECIAL_WORDS)
        if model.fim_rate and not config.fim_rate:
            logger.warning("%s can fill in the middle, and may forget it without --fim_rate 0.5", config.model_select)
        model.fim_rate = max(model.fim_rate, config.fim_rate)
    if config.fim_rate:
        learn_fim_words(model)
    if config.lora_r:
        add_lora(model, config, last / ADAPTER if goes_on else None)
    return model


if __name__ == "__main__":
    run_command(main)
