"""The flags of train.py: one dataclass that `train.py` makes its command line from and the run folder records."""

from dataclasses import dataclass

from common.command import InputError, flag
from training.recipes import RECIPES

# Each is a function of the step in trainer.lr_factor.
SCHEDULERS = ("constantlr", "warmuplinear", "warmupconstant", "warmupcosine", "warmupcosinewithhardrestarts")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass
class TrainConfig:
    """Everything that decides a run. Names and defaults are the 2020 reference's where it had the flag."""

    model_select: str = flag(
        "distilgpt2", "tiny (embedded), distilgpt2, gpt2, gpt2_medium, gpt2_large, a Hub id or a model folder"
    )
    dataset_name: str = flag("source_code", "folder below dataset/ that convert.py has written")
    run_name: str = flag("", "folder below model/ for this run; empty: <model_select>_fine_tuned_coder")
    recipe: str = flag("", "settings of a run of the lab report, which other flags overrule: " + ", ".join(RECIPES))
    restore_training: bool = flag(False, "go on from the run's last saved state, if there is one")
    overwrite: bool = flag(False, "delete an earlier run of the same name")
    from_scratch: bool = flag(False, "keep the model's configuration and vocabulary, start from random weights")

    num_epochs_train: int = flag(16, "epochs to train")
    max_steps: int = flag(0, "end after this many optimizer steps; 0: when the epochs end")
    per_gpu_train_batch_size: int = flag(4, "sequences per forward pass on each GPU")
    accumulation_steps: int = flag(1, "forward passes per optimizer step")
    max_seq_length: int = flag(256, "tokens per sequence")

    fim_rate: float = flag(
        0.0, "share of the rows that learn to fill in the middle: prefix, suffix, middle; 0.5 is usual, at most 0.9"
    )

    lr: float = flag(2e-5, "peak learning rate")
    scheduler: str = flag("warmuplinear", "learning rate schedule", choices=SCHEDULERS)
    warmup_ratio: float = flag(0.2, "share of all steps in which the learning rate rises")
    weight_decay: float = flag(0.01, "AdamW's weight decay on matrices; biases and norms have none")
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm")

    evaluation_steps: int = flag(200, "optimizer steps between two evaluations on dev")
    dev_batch_size: int = flag(
        8, "sequences per forward pass in evaluation; on a GPU as many more as fit; no result depends on it"
    )
    dev_windows: int = flag(0, "evaluate on that many windows of dev, always the same ones; 0: all")
    early_stop: int = flag(20, "end after this many evaluations without a better dev score")
    save_steps: int = flag(0, "optimizer steps between two saved states; 0: at every evaluation alone")
    logging_steps: int = flag(10, "optimizer steps between two entries of the training loss")

    precision: str = flag("auto", "auto: bf16 or fp16 where the hardware is fast at it", choices=PRECISIONS)
    fp16: bool = flag(False, "short for --precision fp16")
    compile: str = flag(
        "auto", "torch.compile; auto: if the run is long enough to repay it", choices=("auto", "on", "off")
    )
    seed: int = flag(122, "random seed")
    deterministic: bool = flag(
        False, "the same bits again on the same GPU, at some cost of speed; a CPU gives them anyway"
    )
    n_gpu: int = flag(1, "GPUs to train on")
    visiable_device: str = flag("0", "which GPUs, as 0 or 0,1", "--visible_device")

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
        positive = "num_epochs_train per_gpu_train_batch_size accumulation_steps evaluation_steps dev_batch_size"
        at_least = {
            "max_seq_length": 2,
            "max_steps": 0,
            "dev_windows": 0,
            "save_steps": 0,
            "weight_decay": 0,
            "seed": 0,
            **dict.fromkeys([*positive.split(), "early_stop", "logging_steps", "n_gpu"], 1),
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if not self.lr > 0 or not self.max_grad_norm > 0:
            raise InputError(f"--lr {self.lr} --max_grad_norm {self.max_grad_norm}: both must be above 0")
        if not 0 <= self.fim_rate <= 0.9:
            raise InputError(f"--fim_rate {self.fim_rate}: must be between 0 and 0.9; beyond, too few rows stay whole")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"--warmup_ratio {self.warmup_ratio}: must be a share between 0 and 1")
