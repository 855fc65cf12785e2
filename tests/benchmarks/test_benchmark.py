"""benchmark.py: every contender runs, and the files that it writes say so."""

import importlib.util
import json

import pytest


def test_quick_run_writes_all_numbers_and_a_chart(project, base, tmp_path):
    output, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ("--quick", "--model", base, "--tokenizer", base, "--output", output, "--chart", chart)
    done = project.run("benchmark.py", *arguments)
    results = json.loads(output.read_text())

    has_trainer = importlib.util.find_spec("accelerate") is not None
    names = [row["name"] for row in results["training"]]
    assert names == ["ours", "plain float32 loop", *["Hugging Face Trainer"] * has_trainer]
    assert ("left out" in done.stderr) != has_trainer
    assert all(name in done.stdout for name in names)
    for row in results["training"]:
        assert row["tokens_per_second"] == pytest.approx(row["batch"] * results["window"] / row["step_s"])
        assert len(row["step_s_all"]) == results["repeats"]
        assert row["flops_utilization"] > 0
    plain = results["evaluation"][0]
    for row in results["evaluation"]:
        assert row["times_plain"] == pytest.approx(row["windows_per_second"] / plain["windows_per_second"])
    assert len(results["data"]) == 3
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert not list((project.folder / "dataset").glob("benchmark_*"))


def test_zero_repeats_are_refused(project):
    assert "--repeats 0: must be at least 1" in project.fails("benchmark.py", "--repeats", 0)
