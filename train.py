"""Fine-tune a GPT-2-family model on a dataset that dataset/convert.py has written.

python train.py --model_select tiny --dataset_name stdlib --max_steps 200     (a laptop CPU, minutes)
python train.py --recipe report-3                                             (the lab report's third run)
python train.py --restore_training                                            (go on after an interruption)
"""

import logging
import shlex
import shutil
import signal
import sys
from pathlib import Path

from common.command import InputError, Parser, add_flags, run_command
from common.files import ROOT, dataset_file, recover_folder
from training.config import TrainConfig
from training.recipes import find_recipe

logger = logging.getLogger("train")


def main() -> None:
    config = read_flags()
    train_file, dev_file = (dataset_file(config.dataset_name, split) for split in ("train", "dev"))
    run_folder = ROOT / "model" / config.run_name
    has_earlier_run = run_folder.is_dir() and any(run_folder.iterdir())
    overwrite = has_earlier_run and not config.restore_training and _may_overwrite(run_folder, config.overwrite)

    import torch

    from common.devices import keep_freed_memory
    from common.source_code import SPECIAL_WORDS
    from data import SrcCodeDataset
    from model import GPTSingleHead
    from trainer import ModelTrainer
    from training import processes
    from training.evaluator import SingleCLMEvaluator
    from training.fim import learn_fim_words

    device = processes.start(config.n_gpu, config.visiable_device, config.deterministic)
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.INFO if processes.is_main() else logging.ERROR)
    torch.manual_seed(config.seed)  # for the rows of new words, and all weights from scratch
    last = run_folder / "last"
    recover_folder(last)
    if config.restore_training and last.is_dir():
        model = GPTSingleHead.load(last)
    else:
        if config.restore_training:
            logger.info("%s: no saved state, so the run starts from its first step", last)
        model = GPTSingleHead(config.model_select, config.max_seq_length, from_scratch=config.from_scratch)
        model.add_special_words(SPECIAL_WORDS)
        if config.fim_rate:
            learn_fim_words(model)
        model.fim_rate = max(model.fim_rate, config.fim_rate)
    with processes.main_first():  # which packs the datasets
        cache = ROOT / ".cache" / config.run_name
        train_dataset = SrcCodeDataset(train_file, model, cache / "train")
        dev_dataset = SrcCodeDataset(dev_file, model, cache / "dev")
    dev_evaluator = SingleCLMEvaluator(
        batch_size=config.dev_batch_size, precision=config.precision, windows=config.dev_windows
    )
    model.to(device)
    model_trainer = ModelTrainer(model, train_dataset, dev_dataset, dev_evaluator, config, run_folder)
    if processes.is_main():
        if overwrite:  # only now that nothing can be wrong with the new run's input
            shutil.rmtree(run_folder)
        _log_to_file(run_folder)
    model_trainer.train()
    processes.finish()
    if model_trainer.stop.signal and processes.is_main():
        arguments = [a for a in sys.argv[1:] if a not in ("--overwrite", "--restore_training")]
        command = shlex.join(["python", "train.py", *arguments, "--restore_training"])
        print(f"stopped after step {model_trainer.progress.step}; go on with: {command}")
    if model_trainer.stop.signal == signal.SIGINT:
        sys.exit(130)


def read_flags() -> TrainConfig:
    parser = Parser(__doc__)
    add_flags(parser, TrainConfig)
    flags = parser.parse_args()
    if flags.recipe:  # whose settings are then the defaults
        parser.set_defaults(**find_recipe(flags.recipe))
        flags = parser.parse_args()
    return TrainConfig(**vars(flags))


def _may_overwrite(run_folder: Path, overwrite: bool) -> bool:
    """Whether an earlier run may be deleted: by the flag, or by a yes on the terminal.

    Raises:
        InputError: it may not.
    """
    if overwrite:
        return True
    if sys.stdin.isatty() and input(f"{run_folder} holds an earlier run. Delete it? (y/n) ").strip().lower() == "y":
        return True
    raise InputError(
        f"{run_folder}: holds an earlier run; go on with it (--restore_training), delete it (--overwrite) "
        "or choose another --run_name"
    )


def _log_to_file(run_folder: Path) -> None:
    run_folder.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # a full disk is for the trainer to report, in one line
    handler = logging.FileHandler(run_folder / "log.out", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    run_command(main)
