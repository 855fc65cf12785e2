"""A run's folder, model/<run_name>/: who may write into it, what a new run deletes there, and its model's card."""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.command import InputError
from common.files import ROOT, lock
from common.source_code import LANGUAGES
from dataset.format import read_meta
from training.config import TrainConfig

# The files of a run, including those left when it is killed while writing. Nothing else is ever deleted.
RUN_FILE = re.compile(
    r"(0_GPTSingleHead|last|tensorboard|wandb|hyperparams\.json|ck_report\.json|log\.out|run\.lock"
    r"|adapt\.json|adapt_places\.json|humaneval_(before|after)\.jsonl|[^.]+\.gguf)"
    r"(\.autocoder-new|\.autocoder-old|\.\d+\.tmp)?"
)
# The README.md of a saved model, with the Hub's metadata, so that its folder can be uploaded as it is.
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{base_model}tags: [code, autocoder]
---

# {name}

{how} on the dataset `{dataset}`{split}. It continues source code; it does not answer questions.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("PATH") for kind in (AutoModelForCausalLM, AutoTokenizer))
```

A text begins with its language's control word, {words}, without a space after it.{fim}

| on the dataset's dev split, after {steps} steps, {tokens:,} tokens | |
|---|---:|
{scores}

Flags of `train.py` that differ from its defaults: {flags}
"""
FIM = """

It fills in the middle too, trained with `--fim_rate {rate:g}` on two orders: prefix word, suffix word, suffix,
middle word, prefix; and prefix word, prefix, suffix word, suffix, middle word.
After the first, what it writes follows the prefix directly."""
NO_FIM = """

Its base was trained with `--fim_rate {rate:g}` to fill in the middle. This run was trained without, so it may have
forgotten that; `python evaluate.py --model_path PATH --infill 100` measures it."""


def is_run(run_folder: Path) -> bool:
    """Whether a run has saved something in this folder that could be lost.

    Raises:
        InputError: the folder contains files, but none of a run.
    """
    names = sorted(path.name for path in run_folder.iterdir()) if run_folder.exists() else []
    if names and not any(map(RUN_FILE.fullmatch, names)):
        raise InputError(f"{run_folder}: holds {names[0]}, which is not of a run; choose another --run_name")
    return any(name.startswith(("last", "0_GPTSingleHead")) for name in names)


def check_free(run_folder: Path, config: TrainConfig) -> None:
    """Refuse to start a run if an earlier one would be lost.

    Raises:
        InputError: the folder holds an earlier run, and the flags neither continue nor delete it.
    """
    if not config.restore_training and is_run(run_folder) and not config.overwrite:
        raise InputError(
            f"{run_folder}: holds an earlier run; go on with it (--restore_training), delete it (--overwrite) "
            "or choose another --run_name"
        )


@contextlib.contextmanager
def hold(run_folder: Path, config: TrainConfig) -> Iterator[None]:
    """Keep other commands out of a run's folder while this one writes there.

    Raises:
        InputError: another command is training there, or has trained there since the flags were checked.
    """
    with lock(run_folder / "run.lock"):
        check_free(run_folder, config)
        yield


def start_files(run_folder: Path, config: TrainConfig) -> None:
    """Delete the files of an earlier run, unless this run continues it, and start to write log.out."""
    for path in run_folder.iterdir():
        if not config.restore_training and RUN_FILE.fullmatch(path.name) and path.name != "run.lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    logging.raiseExceptions = False  # the trainer reports a full disk in one line
    handler = logging.FileHandler(run_folder / "log.out", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    logging.getLogger().addHandler(handler)


@contextlib.contextmanager
def report_unwritable(path: Path) -> Iterator[None]:
    """Turn a failure to write below `path` into an InputError that says what is kept."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be written ({error}); what was saved before is kept; make room, then go on with "
            "--restore_training"
        ) from None


def model_card(config: TrainConfig, report: dict, fim_rate: float) -> str:
    """The card of a run's best model.

    Args:
        report: ck_report.json.
        fim_rate: the highest that the model was trained with, in this run or before.
    """
    is_hub_id = not Path(config.model_select).exists() and config.model_select != "tiny"
    try:
        split = f", split by {read_meta(ROOT / 'dataset' / config.dataset_name / 'json')['flags']['split_by']}"
    except InputError:  # a dataset of the 2020 reference has no meta.json
        split = ""
    default, scores = TrainConfig(), report["eval_scores_on_dev"]
    changed = {name: value for name, value in vars(config).items() if value != getattr(default, name)}
    return CARD.format(
        name=config.run_name,
        base_model=f"base_model: {config.model_select}\n" * is_hub_id,
        how=f"`{config.model_select}`, {'trained from random weights' if config.from_scratch else 'fine-tuned'}",
        dataset=config.dataset_name,
        split=split,
        words=" or ".join(f"`<{language}>`" for language in LANGUAGES),
        fim=(FIM if config.fim_rate else NO_FIM).format(rate=config.fim_rate or fim_rate) if fim_rate else "",
        steps=report["saved_at_total_steps"],
        tokens=report["tokens_seen"],
        scores="\n".join(f"| {name} | {value:,.4f} |" for name, value in scores.items() if name != "tokens"),
        flags=" ".join(f"`--{name} {value}`" for name, value in changed.items()) or "none",
    )
