"""Published figures of known models on known benchmarks, to be read beside one's own."""

from pathlib import Path

from common.files import read_lines
from common.json_files import parse_json
from common.model_files import MODEL_MAP

# SHA-256 of the text of a file of problems -> the benchmark.
PROBLEM_FILES = {
    "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2": "HumanEval",
    "04228b8a570ff7c346c740b91f0c6a0b323f86a26e903db8477c6f2d10f38819": "HumanEval+",  # 0.1.10
    "132d01c96df6b4b0fe0cbb8414092fe62c51b873b160d1ec8fc2ded28484865a": "MBPP+",  # 0.2.0
}

_QWEN = "Qwen2.5-Coder Technical Report, arXiv 2409.12186v3, table"
_EVALPLUS = "EvalPlus leaderboard, December 2024"
_REPOFORMER = "Repoformer, arXiv 2403.10059v2, table 2"

# The setting is the publisher's; per cent.
_OF_QWENS_REPORT = (  # columns: Qwen2.5-Coder 0.5B, 1.5B, 3B; DeepSeek-Coder 1.3B; StarCoder2 3B
    ("HumanEval", f"{_QWEN} 5", "greedy", (28.0, 43.9, 52.4, 34.8, 31.7)),
    ("HumanEval+", f"{_QWEN} 5", "greedy, version 0.1.9", (23.8, 36.6, 42.7, 26.8, 27.4)),
    ("MBPP+", f"{_QWEN} 5", "greedy, version 0.1.0 with 399 problems", (47.1, 58.6, 61.4, 46.9, 49.1)),
    (
        "HumanEval-Infilling",
        f"{_QWEN} 7",
        "with suffix, on SantaCoder's choice of lines",
        (70.3, 77.0, 78.7, 72.8, 70.9),
    ),
    ("CrossCodeEval", f"{_QWEN} 8", "with suffix and 2,048 tokens of oracle chunks", (22.7, 35.5, 38.4, 33.4, 11.0)),
    ("RepoEval", f"{_QWEN} 10", "with suffix and 2,048 tokens of oracle chunks", (44.2, 59.8, 64.9, 58.7, 22.3)),
)
_MODELS_OF_QWENS_REPORT = (
    "Qwen/Qwen2.5-Coder-0.5B",
    "Qwen/Qwen2.5-Coder-1.5B",
    "Qwen/Qwen2.5-Coder-3B",
    "deepseek-ai/deepseek-coder-1.3b-base",
    "bigcode/starcoder2-3b",
)
_OF_ONE_MODEL = (
    ("bigcode/starcoderbase-1b", "HumanEval", _EVALPLUS, "greedy", 14.6),
    ("bigcode/starcoderbase-1b", "HumanEval+", _EVALPLUS, "greedy", 12.2),
    ("bigcode/starcoderbase-1b", "RepoEval", _REPOFORMER, "with suffix, without chunks", 43.44),
    ("bigcode/starcoderbase-1b", "RepoEval", _REPOFORMER, "with suffix and chunks", 51.19),
    ("deepseek-ai/deepseek-coder-1.3b-base", "HumanEval", _EVALPLUS, "greedy", 28.7),
    ("deepseek-ai/deepseek-coder-1.3b-base", "HumanEval+", _EVALPLUS, "greedy", 25.6),
    ("deepseek-ai/deepseek-coder-1.3b-base", "MBPP+", _EVALPLUS, "greedy", 47.9),
    ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "HumanEval", f"{_QWEN} 16", "as a chat", 61.6),
    ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "HumanEval+", f"{_QWEN} 16", "as a chat", 57.3),
    ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "MBPP+", f"{_QWEN} 16", "as a chat", 43.7),
    ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "HumanEval", f"{_QWEN} 16", "as a chat", 70.7),
    ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "HumanEval+", f"{_QWEN} 16", "as a chat", 66.5),
    ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "MBPP+", f"{_QWEN} 16", "as a chat", 59.4),
    ("codeparrot/codeparrot-small", "HumanEval", "its model card", "number of samples not stated", 3.8),
)
FIGURES = _OF_ONE_MODEL + tuple(
    (model, benchmark, source, setting, figure)
    for benchmark, source, setting, row in _OF_QWENS_REPORT
    for model, figure in zip(_MODELS_OF_QWENS_REPORT, row, strict=True)
)


def benchmark_of_places(path: Path) -> str | None:
    """The benchmark of a file that `read_places` has read: told by its first task, for RepoEval by its name too."""
    (first, *_), _ = read_lines(path, "")
    row = parse_json(first or "{}", dict, str(path), "")
    task = str({**row.get("metadata", {}), **row}.get("task_id"))
    if task.startswith("SingleLineInfilling/"):
        return "HumanEval-Infilling"
    if task.startswith("project_cc_python/"):
        return "CrossCodeEval"
    return "RepoEval" if task.startswith("huggingface_diffusers/") and "line" in path.name else None


def published(model: str, benchmark: str | None, what: str) -> list[str]:
    """One line for each published figure of a model, named as for `find_pretrained`.

    Args:
        what: the measure, such as pass@1.
    """
    name = MODEL_MAP.get(model, model).lower()
    return [
        f"  published: {benchmark} {what} {figure} % ({setting}; {source})"
        for known, of, source, setting, figure in FIGURES
        if of == benchmark and known.lower() == name
    ]
