"""Adapt a model to your own repository: measure it there, train it for the time you have, measure it again.

python adapt.py ~/my_project                                          asks nothing, takes half an hour
python adapt.py ~/my_project --minutes 10 --model_select tiny --output result.json

If it is stopped at any moment, the same command continues where it was. Nothing leaves this machine; the base model
may come from the Hub.
"""

import contextlib
import io
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptation.state import LOSS_SHARE, AdaptFlags, State, find_run
from common.command import InputError, parse_flags, run_command
from common.files import atomic_write, dataset_file
from evaluation.loss import SingleCLMEvaluator

if TYPE_CHECKING:
    from model import GPTSingleHead
    from trainer import ModelTrainer

AVERAGE_SHARE = 0.04  # of the whole time, to find the average of base and adapted model that forgets little
LEAST_TOKENS = 5000  # to train on
# Modules of Python's own library on which the model's loss shows what it forgets.
GENERAL = (
    "argparse ast bdb calendar codecs configparser csv datetime difflib dis doctest enum fractions ftplib functools "
    "gettext inspect ipaddress locale mailbox optparse pickle platform plistlib pprint random shutil socket statistics "
    "subprocess tarfile tempfile textwrap threading timeit trace typing uuid zipfile"
)


def main() -> None:
    flags = parse_flags(AdaptFlags, __doc__)
    if not Path(flags.folder).is_dir():
        raise InputError(f"{flags.folder}: no such folder; name the folder of a project")
    run_folder, earlier = find_run(flags)

    from adaptation.measuring import measure
    from common.devices import keep_freed_memory
    from training.config import TrainConfig
    from training.run_folder import hold

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # the rest goes to log.out
    keep_freed_memory()
    with hold(run_folder, TrainConfig(run_name=run_folder.name, restore_training=True)):
        state = State(run_folder, flags)
        if "config" not in state:
            prepare(state, earlier)
        measure(state, "before", state["config"]["model_select"])
        if "trained" not in state:
            train_model(state)
        if "share" not in state:
            average_weights(state)
        measure(state, "after", str(run_folder))
        report(state)


# ---- before ---------------------------------------------------------------------------------------------------------


def prepare(state: State, earlier: Path | None) -> None:
    """Choose the base model, convert the repository, and plan the training from the speed measured now.

    Raises:
        InputError: there is too little code or too little time to learn anything.
    """
    from adaptation.budget import ROW_TOKENS, read_machine
    from adaptation.plan import better_start, choose_base, plan_training
    from common.model_files import find_pretrained
    from completion.tokens import context_length
    from dataset.format import read_meta

    flags, machine = state.flags, read_machine()
    cores = f"{machine.cores} cores" if machine.device == "cpu" else "a GPU"
    print(f"this machine: {cores}, {machine.memory / 2**30:.1f} GiB free; {flags.minutes:g} minutes")
    base = flags.model_select or choose_base(state, machine)
    row = min(ROW_TOKENS, context_length(find_pretrained(base)))
    convert_sources(state, base, row, earlier)
    splits = [of_language["train"] for of_language in read_meta(state.files["project"].parent)["languages"].values()]
    if (tokens := sum(split["window_tokens"] for split in splits)) < LEAST_TOKENS:
        raise InputError(f"{flags.folder}: only {tokens:,} tokens to train on; at least {LEAST_TOKENS:,} are needed")
    if earlier:
        base = better_start(state, base, str(earlier), row)
    plan_training(state, machine, base, row, sum(split["windows"] for split in splits))


def convert_sources(state: State, base: str, row: int, earlier: Path | None) -> None:
    """Make two datasets: one of the repository, which is described, and one of files of Python's own library."""
    from dataset.convert import ConvertConfig, convert
    from dataset.sources import source_root

    library = [source_root("stdlib") / f"{name}.py" for name in GENERAL.split()]
    shared = {"tokenizer": base, "whole_files": True, "segment_len": row - 2, "seed": state.flags.seed}
    kept = {"keep_split": earlier.name} if earlier else {}  # otherwise the last model would know today's held-out files
    convert(ConvertConfig(source=(state.folder,), dataset_name=state.name, drop_clones=True, **kept, **shared))
    general = tuple(str(file) for file in library if file.is_file())
    with contextlib.redirect_stdout(io.StringIO()):
        convert(ConvertConfig(source=general, dataset_name=f"{state.name}_library", dev_size=0.9, **shared))


# ---- training -------------------------------------------------------------------------------------------------------


def train_model(state: State) -> None:
    import torch

    from common.devices import choose_device, peak_memory
    from train import make_trainer, memory_advice
    from training.config import TrainConfig
    from training.run_folder import start_files

    config = TrainConfig(**state["config"], restore_training=(state.run_folder / "last").is_dir())
    files = [dataset_file(state.name, split) for split in ("train", "dev")]
    device = choose_device()
    torch.manual_seed(config.seed)
    with memory_advice(device):
        trainer = make_trainer(config, files, state.run_folder, device)
        start_files(state.run_folder, TrainConfig(**state["config"], restore_training=True))
        trainer.total_steps = state["total_steps"]
        trainer.dev_evaluator = Pace(trainer, state)
        trained = trainer.train()
    if trainer.stop.signal:
        print(f"stopped after step {trainer.progress.step}; the same command continues", flush=True)
        sys.exit(130 if trainer.stop.signal == signal.SIGINT else 0)
    state.save(trained=trained, peak_memory=peak_memory(device))


class Pace(SingleCLMEvaluator):
    """The trainer's evaluator. After each evaluation it plans the rest of the training again, so that it ends in time.

    Args:
        trainer: this becomes its evaluator and changes its `total_steps`.
        state: records the planned number of steps.
    """

    def __init__(self, trainer: "ModelTrainer", state: State):
        self.__dict__ |= vars(trainer.dev_evaluator)
        self._trainer, self._state = trainer, state
        self._began, self._first = state.spent, None
        self._epoch, self._most = -1, 0
        # The adapted model is measured at the same places as the base, and may read the suffix too. The average takes
        # about half of its time, because usually it tries only a few shares.
        self._ends = (1 - AVERAGE_SHARE / 2) * state.seconds - 1.1 * state["before"]["seconds"] - 5

    def __call__(
        self, model: "GPTSingleHead", interrupted: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        from tqdm import tqdm

        scores = super().__call__(model, interrupted)
        if scores is None:
            return None
        trainer, state, step = self._trainer, self._state, self._trainer.progress.step
        if self._first is None:  # the step after which this command continued
            self._first = (step - 1) // trainer.config.evaluation_steps * trainer.config.evaluation_steps
        left = max(0.0, self._ends - state.spent)
        if trainer.progress.epoch != self._epoch:
            # An epoch's rows are chosen at its start, for the steps planned then. Later plans cannot have more.
            self._epoch, self._most = trainer.progress.epoch, trainer.total_steps
        if step < trainer.total_steps:
            planned = step + int(left * (step - self._first) / (state.spent - self._began))
            trainer.total_steps = min(self._most, planned)
        state.save(total_steps=trainer.total_steps)
        tqdm.write(
            f"  step {step} of {trainer.total_steps}: {scores['bits_per_byte']:.4f} bits per byte on "
            f"{trainer.config.dev_windows} held-out windows, {left / 60:.1f} minutes of training left"
        )
        return scores


def average_weights(state: State) -> None:
    from adaptation.averaging import SHARES, average

    config, best = state["config"], state.run_folder / "0_GPTSingleHead"
    general = dataset_file(f"{state.name}_library", "train")
    windows = max(8, int(state["loss_windows"] * AVERAGE_SHARE / LOSS_SHARE / (1 + len(SHARES))))
    print("choosing how much of the change to keep, so that little is forgotten", flush=True)
    state.save(share=average(best, config["model_select"], general, config["max_seq_length"], windows))


# ---- after ----------------------------------------------------------------------------------------------------------


def report(state: State) -> None:
    """Print and save what has changed, write the GGUF file, and print how to use the model."""
    from adaptation.comparison import chart, compare, examples, tell
    from common.devices import choose_device, peak_memory
    from completion.gguf_export.errors import CannotConvert
    from completion.gguf_export.gguf_file import convert
    from dataset.format import read_meta

    # Two models at a time, for the average, may take more memory than the training.
    state.save(peak_memory=max(state["peak_memory"], peak_memory(choose_device())))
    before, after = state["before"], state["after"]
    meta = read_meta(state.files["project"].parent)
    result = {
        "repository": state.folder,
        "commit": meta["sources"][0]["version"],
        "flags": state["config"],
        "trained": state["trained"],
        "share": state["share"],
        "peak_memory": state["peak_memory"],
        "losses": {"before": before["losses"], "after": after["losses"]},
        "places": compare(before["places"], after["places"]),
        "answers": {"before": before["places"], "after": after["places"]},
    }
    if state.flags.humaneval:
        result["humaneval"] = {"before": before["humaneval"], "after": after["humaneval"]}
    told, best, gguf = tell(result), state.run_folder / "0_GPTSingleHead", state.run_folder / f"{state.name}.gguf"
    print(f"\n{examples(before['places'], after['places'])}\n\n{told}\n")
    write_card(best / "README.md", result, [name for source in meta["sources"] for name in source["files"]], told)
    try:
        convert(best, gguf)
    except CannotConvert as error:
        print(f"note: no GGUF file: {error}")
    result["minutes"] = state.spent / 60
    if state.flags.output:
        output = Path(state.flags.output)
        with atomic_write(output) as file:
            json.dump(result, file, indent=1)
        print(f"written: {output} and {chart(result, output.with_suffix('.png'))}")
    state.save(done=True)
    flags = f"--model_path {shlex.quote(str(state.run_folder))} --repository {shlex.quote(state.folder)}"
    peak = state["peak_memory"] / 2**30
    print(f"{state.spent / 60:.1f} minutes, at most {peak:.1f} GiB of memory; the model is in {state.run_folder}")
    print(f"in the editor:      python serve.py {flags}")
    print(f"in a conversation:  python interact.py {flags}")


def write_card(path: Path, result: dict[str, Any], files: list[str], told: str) -> None:
    """Add to the model's card what it was adapted to. Done again after a stop, this replaces the earlier text."""
    title, names = "## Adapted to a repository", "\n".join(f"- `{name}`" for name in files)
    card = path.read_text(encoding="utf-8").partition(title)[0].rstrip()
    where = f"`{Path(result['repository']).name}`, {result['commit'] or 'not in git'}"
    with atomic_write(path) as file:
        file.write(
            f"{card}\n\n{title}\n\n{where}\n\n```\n{told}\n```\n\nIts files, some of them held out:\n\n{names}\n"
        )


if __name__ == "__main__":
    run_command(main)
