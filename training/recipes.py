"""The lab report's four runs and the 2020 reference as named settings for `train.py --recipe`, with their results."""

import difflib

from common.command import InputError

SETTINGS = ("num_epochs_train", "max_seq_length", "lr", "warmup_ratio")
RESULTS = ("best_score_perplexity", "dev_eval_scores", "dev_loss", "train_loss")
# The columns of the report's last table: the values of SETTINGS, then of RESULTS, which count padding.
RECIPES = {
    "report-1": (1, 256, 1e-5, 0.2, -3.1740331649780273, 3.1755013465881348, 1.155465, 1.5959064960479736),
    "report-2": (1, 128, 1e-5, 0.2, -4.196605682373047, 4.199092388153076, 1.434868, 1.9175739288330078),
    "report-3": (1, 256, 1e-4, 0.2, -1.5279237031936646, 1.5282740592956543, 0.424139, 0.924028217792511),
    "report-4": (1, 256, 1e-5, 0.1, -3.1631147861480713, 3.1644909381866455, 1.151992, 1.4988362789154053),
    "reference": (16, 256, 2e-5, 0.2, -1.2681105136871338, 1.268279790878296, 0.237662, 0.3555217981338501),
}
# Settings that are the same in all runs of the report. Its numbers need its split: convert.py --split_by segment.
COMMON = {
    "model_select": "distilgpt2",
    "dataset_name": "source_code_segment",
    "per_gpu_train_batch_size": 4,
    "accumulation_steps": 1,
    "dev_batch_size": 8,
    "early_stop": 20,
    "evaluation_steps": 200,
    "scheduler": "warmuplinear",
    "seed": 122,
}


def find_recipe(name: str) -> dict[str, str | int | float]:
    """The flags of train.py that a recipe sets; `run_name` is the recipe's own.

    Raises:
        InputError: there is no such recipe; names the nearest ones.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        raise InputError(
            f"--recipe {name}: no such recipe; {'did you mean' if near else 'choose'} {' or '.join(near or RECIPES)}?"
        )
    return {**COMMON, **dict(zip(SETTINGS, RECIPES[name], strict=False)), "run_name": name}


def recipe_of(settings: dict) -> str | None:
    """The recipe that a run's hyperparams.json names or agrees with, if any."""
    if settings.get("recipe") in RECIPES:
        return settings["recipe"]
    chosen = tuple(settings.get(name) for name in SETTINGS)
    return next((name for name, column in RECIPES.items() if column[: len(SETTINGS)] == chosen), None)


def report_results(recipe: str) -> dict[str, float]:
    return dict(zip(RESULTS, RECIPES[recipe][len(SETTINGS) :], strict=True))
