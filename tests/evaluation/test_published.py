"""What evaluate.py prints of others' figures."""

import json
import shutil

import pytest

from evaluation.published import FIGURES, benchmark_of_places, published


@pytest.mark.parametrize(
    ("row", "name", "benchmark"),
    [
        ({"task_id": "SingleLineInfilling/HumanEval/0/L0"}, "a.jsonl", "HumanEval-Infilling"),
        ({"task_id": "MultiLineInfilling/HumanEval/0/L0_L1"}, "a.jsonl", None),
        ({"metadata": {"task_id": "project_cc_python/62"}}, "a.jsonl", "CrossCodeEval"),
        ({"metadata": {"task_id": "project_cc_java/62"}}, "a.jsonl", None),
        ({"metadata": {"task_id": "huggingface_diffusers/0"}}, "python_line_completion.jsonl", "RepoEval"),
        ({"metadata": {"task_id": "huggingface_diffusers/0"}}, "python_api_completion.jsonl", None),
        ({"task_id": 5}, "line.jsonl", None),
    ],
)
def test_a_file_of_places_is_told_by_its_first_task(tmp_path, row, name, benchmark):
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    assert benchmark_of_places(tmp_path / name) == benchmark


def test_a_model_is_known_by_its_name_on_the_hub():
    (line,) = published("qwen/qwen2.5-coder-0.5B", "HumanEval", "pass@1")
    assert "HumanEval pass@1 28.0 %" in line
    assert "arXiv 2409.12186v3, table 5" in line
    assert len(published("deepseek-ai/deepseek-coder-1.3b-base", "HumanEval+", "pass@1")) == 2
    for model, benchmark in (("tiny", "HumanEval"), ("model/Qwen2.5-Coder-0.5B", "MBPP+"), ("gpt2", None)):
        assert published(model, benchmark, "pass@1") == []
    assert all(0 < figure < 100 for *_, figure in FIGURES)


def test_the_command_prints_the_figure_beside_its_own(project, tmp_path):
    folder = project.folder / "Qwen" / "Qwen2.5-Coder-0.5B"
    shutil.copytree(project.folder / "pretrained" / "tiny", folder)
    row = {"task_id": "SingleLineInfilling/HumanEval/0/L0", "prompt": "x = ", "suffix": "\n", "canonical_solution": "1"}
    (tmp_path / "places.jsonl").write_text(json.dumps(row) + "\n")
    command = ("evaluate.py", "--infill", 1, "--file_path", tmp_path / "places.jsonl", "--model_path")
    done = project.run(*command, "Qwen/Qwen2.5-Coder-0.5B")
    assert done.stdout.endswith(
        "  published: HumanEval-Infilling exact 70.3 % (with suffix, on SantaCoder's choice of lines; "
        "Qwen2.5-Coder Technical Report, arXiv 2409.12186v3, table 7)\n"
    )
    assert "published" not in project.run(*command, "tiny").stdout
