"""Fine-tune a GPT-2-family model on a dataset that dataset/convert.py has written.

python train.py --model_select tiny --dataset_name stdlib --max_steps 200     (a laptop CPU, minutes)
python train.py --recipe report-3                                             (the lab report's third run)
python train.py --restore_training                                            (go on after an interruption)
"""

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import InputError, Parser, add_flags, run_command
from common.files import ROOT, dataset_file, lock, recover_folder
from training.config import TrainConfig
from training.recipes import find_recipe

if TYPE_CHECKING:
    import torch

    from evaluation.pass_rate import PassRate
    from model import GPTSingleHead
    from trainer import ModelTrainer

logger = logging.getLogger("train")

# What a run leaves in its folder, also when it is killed while it writes. Nothing else there is ever deleted.
RUN_FILE = re.compile(
    r"(0_GPTSingleHead|last|tensorboard|wandb|hyperparams\.json|ck_report\.json|log\.out|run\.lock)"
    r"(\.autocoder-new|\.autocoder-old|\.\d+\.tmp)?"
)


def main() -> None:
    config = read_flags()
    files = [dataset_file(config.dataset_name, split) for split in ("train", "dev")]
    run_folder = ROOT / "model" / config.run_name
    if is_run(run_folder) and not config.restore_training:
        ask_to_overwrite(run_folder, config)

    import torch

    from common.devices import keep_freed_memory
    from training import processes

    device = processes.start(config.n_gpu, config.visiable_device, config.deterministic)
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.INFO if processes.is_main() else logging.ERROR)
    torch.manual_seed(config.seed)  # for the rows of new words, and all weights from scratch
    with hold(run_folder, processes.is_main()), processes.others_needed(), memory_advice(device):
        trainer = make_trainer(config, files, run_folder, device)
        if processes.is_main():  # only now that nothing can be wrong with the new run's input
            if not config.restore_training:
                delete_run(run_folder)
            log_to_file(run_folder)
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
    if flags.recipe:  # whose settings are then the defaults
        parser.set_defaults(**find_recipe(flags.recipe))
        flags = parser.parse_args()
    return TrainConfig(**vars(flags))


def make_trainer(config: TrainConfig, files: list[Path], run_folder: Path, device: "torch.device") -> "ModelTrainer":
    from data import SrcCodeDataset
    from evaluation.loss import SingleCLMEvaluator
    from trainer import ModelTrainer
    from training import processes

    pass_rate = make_pass_rate(config)
    model = load_model(config, run_folder)
    if config.gradient_checkpointing:
        model.gpt.gradient_checkpointing_enable({"use_reentrant": False})
    with processes.main_first():  # which packs the datasets
        # Where the next run of the same data finds them too. What is there is used only if it fits.
        cache = ROOT / ".cache" / config.dataset_name / f"{model.max_seq_length}_{len(model.tokenizer)}"
        datasets = [SrcCodeDataset(file, model, cache / file.stem) for file in files]
    evaluator = SingleCLMEvaluator(
        batch_size=config.dev_batch_size,
        precision=config.precision,
        windows=config.dev_windows,
        pass_rate=pass_rate,
    )
    return ModelTrainer(model.to(device), *datasets, evaluator, config, run_folder)


def make_pass_rate(config: TrainConfig) -> "PassRate | None":
    if not config.problems:
        return None
    from evaluation.pass_rate import PassRate

    return PassRate(Path(config.problems), config.max_problems, config.allow_weak_sandbox)


def load_model(config: TrainConfig, run_folder: Path) -> "GPTSingleHead":
    """The model of the run's last saved state, or where there is none, the one to begin with."""
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
    if goes_on and not config.lora_r:
        model = GPTSingleHead.load(last)
        if config.fim_rate:  # which the run may not have had; the trainer says so
            learn_fim_words(model)
        return model
    if config.restore_training and not goes_on:
        runs = ", ".join(sorted(folder.parent.name for folder in ROOT.glob("model/*/last"))) or "none"
        logger.warning("%s: no saved state, so this run starts from its first step; with one there are: %s", last, runs)
    model = GPTSingleHead(config.model_select, config.max_seq_length, from_scratch=config.from_scratch)
    model.add_special_words(SPECIAL_WORDS)
    if config.fim_rate:
        learn_fim_words(model)
    elif model.fim_rate:
        logger.warning("%s can fill in the middle, and forgets it without --fim_rate 0.5", config.model_select)
    model.fim_rate = max(model.fim_rate, config.fim_rate)
    if config.lora_r:  # whose saved state holds no more of the model than is trained
        add_lora(model, config, last / ADAPTER if goes_on else None)
    return model


@contextlib.contextmanager
def hold(run_folder: Path, is_main: bool) -> Iterator[None]:
    """Keep other processes out of a run's folder; leaves no folder behind that nothing was written into.

    Raises:
        InputError: another process trains there.
    """
    if not is_main:
        yield
        return
    try:
        with lock(run_folder / "run.lock"):
            yield
    finally:
        with contextlib.suppress(OSError):
            run_folder.rmdir()


@contextlib.contextmanager
def memory_advice(device: "torch.device") -> Iterator[None]:
    """Turn running out of memory into an InputError that names the flags to lower."""
    import torch

    from common.devices import peak_memory

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # A GPU's allocator has an error of its own, which is a RuntimeError; a CPU's has these words alone.
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        raise InputError(
            f"{device}: out of memory (peak {peak_memory(device) / 2**30:.1f} GiB); lower "
            "--per_gpu_train_batch_size and raise --accumulation_steps as much, or lower --dev_batch_size or "
            "--max_seq_length; what was saved is kept, --restore_training goes on"
        ) from None


def is_run(run_folder: Path) -> bool:
    """Whether a run has saved something there that could be lost.

    Raises:
        InputError: the folder holds something, but nothing that a run leaves.
    """
    names = sorted(path.name for path in run_folder.iterdir()) if run_folder.exists() else []
    if names and not any(map(RUN_FILE.fullmatch, names)):
        raise InputError(f"{run_folder}: holds {names[0]}, which is not of a run; choose another --run_name")
    return any(name.startswith(("last", "0_GPTSingleHead")) for name in names)


def delete_run(run_folder: Path) -> None:
    for path in run_folder.iterdir():
        if RUN_FILE.fullmatch(path.name) and path.name != "run.lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def ask_to_overwrite(run_folder: Path, config: TrainConfig) -> None:
    """Make sure, by the flag or by a yes on the terminal, that the earlier run may be deleted.

    Raises:
        InputError: it may not.
    """
    under_torchrun = "LOCAL_RANK" in os.environ  # where each process would ask
    if not config.overwrite and not under_torchrun and sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            answer = input(f"{run_folder} holds an earlier run. Delete it? (y/n) ")
            config.overwrite = answer.strip().lower() == "y"
        if config.overwrite:
            sys.argv.append("--overwrite")  # for the processes that take over with --n_gpu
    if not config.overwrite:
        raise InputError(
            f"{run_folder}: holds an earlier run; go on with it (--restore_training), delete it (--overwrite) "
            "or choose another --run_name"
        )


def log_to_file(run_folder: Path) -> None:
    logging.raiseExceptions = False  # a full disk is for the trainer to report, in one line
    handler = logging.FileHandler(run_folder / "log.out", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    run_command(main)
