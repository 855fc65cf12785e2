"""The flags of train.py as one dataclass, and recipes: the flags of the lab report's runs, with their results."""

import difflib
from dataclasses import dataclass

from common.command import Flags, InputError, flag, folder_name
from training.schedule import SCHEDULERS

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MOST_STEPS = 10**9

RECIPE_FLAGS = ("num_epochs_train", "max_seq_length", "lr", "warmup_ratio")
RECIPE_RESULTS = ("best_score_perplexity", "dev_eval_scores", "dev_loss", "train_loss")
# The columns of the report's last table: the values of RECIPE_FLAGS, then those of RECIPE_RESULTS, which count padding.
RECIPES = {
    "report-1": (1, 256, 1e-5, 0.2, -3.1740331649780273, 3.1755013465881348, 1.155465, 1.5959064960479736),
    "report-2": (1, 128, 1e-5, 0.2, -4.196605682373047, 4.199092388153076, 1.434868, 1.9175739288330078),
    "report-3": (1, 256, 1e-4, 0.2, -1.5279237031936646, 1.5282740592956543, 0.424139, 0.924028217792511),
    "report-4": (1, 256, 1e-5, 0.1, -3.1631147861480713, 3.1644909381866455, 1.151992, 1.4988362789154053),
    "reference": (16, 256, 2e-5, 0.2, -1.2681105136871338, 1.268279790878296, 0.237662, 0.3555217981338501),
}


def find_recipe(name: str) -> dict[str, str | int | float]:
    """Return the flags that a recipe sets; `run_name` is the recipe's own name.

    Raises:
        InputError: there is no such recipe; names the most similar ones.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        raise InputError(
            f"--recipe {name}: no such recipe; {'did you mean' if near else 'choose'} {' or '.join(near or RECIPES)}?"
        )
    # All other settings of these runs are the defaults. Their dataset was made with convert.py --split_by segment.
    settings = dict(zip(RECIPE_FLAGS, RECIPES[name], strict=False))
    return settings | {"dataset_name": "source_code_segment", "run_name": name}


def recipe_of(settings: dict) -> str | None:
    """Return the recipe that a run's hyperparams.json names, or whose RECIPE_FLAGS it has; None if there is none."""
    if settings.get("recipe") in RECIPES:
        return settings["recipe"]
    chosen = tuple(settings.get(name) for name in RECIPE_FLAGS)
    return next((name for name, column in RECIPES.items() if column[: len(RECIPE_FLAGS)] == chosen), None)


def report_results(recipe: str) -> dict[str, float]:
    return dict(zip(RECIPE_RESULTS, RECIPES[recipe][len(RECIPE_FLAGS) :], strict=True))


def gpu_numbers(text: str) -> str:
    if not all(number.isdecimal() for number in text.split(",")):
        raise ValueError("give GPU numbers, as in 0 or 0,1")
    return text


@dataclass
class TrainConfig(Flags):
    """Everything that decides a run. Names and defaults are the 2020 reference's where it had the flag."""

    model_select: str = flag(
        "distilgpt2", "tiny (embedded), distilgpt2, gpt2, gpt2_medium, gpt2_large, a Hub id or a model folder"
    )
    dataset_name: str = flag("source_code", "folder below dataset/ that convert.py has written", type=folder_name)
    run_name: str = flag(
        "", "folder below model/ for this run; default: <model_select>_fine_tuned_coder", type=folder_name
    )
    recipe: str = flag("", "settings of a run of the lab report; other flags override them: " + ", ".join(RECIPES))
    restore_training: bool = flag(False, "continue from the run's last saved state, if there is one")
    overwrite: bool = flag(False, "delete an earlier run of the same name")
    from_scratch: bool = flag(
        False, "take only the model's configuration and vocabulary, and start from random weights"
    )

    num_epochs_train: int = flag(16, "epochs to train", at_least=1, at_most=1_000_000)
    max_steps: int = flag(
        0, "stop after this many optimizer steps; 0: when the epochs end", at_least=0, at_most=MOST_STEPS
    )
    per_gpu_train_batch_size: int = flag(4, "sequences per forward pass on each GPU", at_least=1, at_most=1_000_000)
    accumulation_steps: int = flag(1, "forward passes per optimizer step", at_least=1, at_most=1_000_000)
    max_seq_length: int = flag(256, "tokens per sequence", at_least=2, at_most=1_000_000)

    # With a rate above 0.9, too few rows would stay whole.
    fim_rate: float = flag(0.0, "fraction of training rows cut for infilling; usually 0.5", at_least=0, at_most=0.9)
    context_rate: float = flag(
        0.0, "fraction of training rows that begin with similar code from other files", at_least=0, at_most=0.9
    )

    lora_r: int = flag(
        0, "rank of LoRA's matrices, which are trained instead of the model; 0: no LoRA", at_least=0, at_most=4096
    )
    lora_alpha: float = flag(32.0, "LoRA's update is scaled by alpha / r", above=0)
    lora_dropout: float = flag(0.0, "dropout probability of LoRA's inputs in training", at_least=0, below=1)
    gradient_checkpointing: bool = flag(
        False, "keep only each layer's input and compute the rest again: less memory, slower"
    )

    lr: float | None = flag(None, "peak learning rate; default: 2e-5, with --lora_r 2e-4", type=float, above=0)
    scheduler: str = flag("warmuplinear", "learning rate schedule", choices=SCHEDULERS)
    warmup_ratio: float = flag(0.2, "fraction of all steps during which the learning rate rises", at_least=0, at_most=1)
    weight_decay: float = flag(0.01, "AdamW's weight decay, of matrices only, not of biases and norms", at_least=0)
    max_grad_norm: float = flag(1.0, "largest norm of the gradient; a longer one is scaled down to it", above=0)

    evaluation_steps: int = flag(200, "optimizer steps between two evaluations on dev", at_least=1, at_most=MOST_STEPS)
    dev_batch_size: int = flag(
        8, "sequences per forward pass in evaluation; adapted to the memory", at_least=1, at_most=1_000_000
    )
    dev_windows: int = flag(
        0, "evaluate on this many windows of dev, always the same ones; 0: all", at_least=0, at_most=10**12
    )
    problems: str | None = flag(
        None, "at each evaluation complete this file's problems, RUN the completions, and log pass@1", type=str
    )
    max_problems: int = flag(0, "use only the first N problems; 0: all", at_least=0, at_most=10**12)
    allow_weak_sandbox: bool = flag(
        False, "run the completions even if this machine can limit only their time and memory"
    )
    early_stop: int = flag(
        20, "stop after this many evaluations without a better dev score", at_least=1, at_most=MOST_STEPS
    )
    save_steps: int = flag(
        0, "also save the state every so many steps; 0: only at evaluations", at_least=0, at_most=MOST_STEPS
    )
    logging_steps: int = flag(
        10, "optimizer steps between two log entries of the training loss", at_least=1, at_most=MOST_STEPS
    )

    precision: str = flag(
        "auto", "auto: bf16 or fp16 where the hardware computes it fast, else fp32", choices=PRECISIONS
    )
    fp16: bool = flag(False, "short for --precision fp16")
    compile: str = flag(
        "auto", "use torch.compile; auto: on a GPU, if the run has 1000 steps or more", choices=("auto", "on", "off")
    )
    seed: int = flag(122, "random seed", at_least=0, below=2**63)
    deterministic: bool = flag(False, "repeat a run bit for bit on the same GPU, more slowly; a CPU always does")
    n_gpu: int = flag(1, "GPUs to train on", at_least=1, at_most=1024)
    visiable_device: str = flag("0", "numbers of the GPUs to use, as in 0 or 0,1", "--visible_device", type=gpu_numbers)

    with_wandb: bool = flag(False, "log to Weights & Biases too; offline if there is no key")
    wandb_project_name: str = flag("code_generate", "project name for Weights & Biases")

    def __post_init__(self) -> None:
        if self.fp16:
            if self.precision not in ("auto", "fp16"):
                raise InputError(f"--fp16 and --precision {self.precision} contradict each other; give one of them")
            self.precision = "fp16"
        self.run_name = self.run_name or f"{self.model_select.strip('/.').replace('/', '_')}_fine_tuned_coder"
        if self.restore_training and self.overwrite:
            raise InputError("--restore_training keeps the earlier run and --overwrite deletes it; give one of them")
        if self.from_scratch and self.lora_r:
            raise InputError(
                "--lora_r adapts a trained model, but --from_scratch starts from random weights; give one of them"
            )
        if self.lr is None:  # LoRA learns best at ten times the rate (thinkingmachines.ai/blog/lora)
            self.lr = 2e-4 if self.lora_r else 2e-5
        if (self.max_problems or self.allow_weak_sandbox) and not self.problems:
            raise InputError("--max_problems and --allow_weak_sandbox are for --problems FILE; give that too")
        super().__post_init__()
