"""`python -m benchmarks`: every contender runs, and the files that it writes say so."""

import importlib.util
import json
import statistics


def test_quick_run_writes_all_numbers_and_a_chart(project, base, tmp_path):
    output, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ("--quick", "--model", base, "--tokenizer", base, "--output", output, "--chart", chart)
    done = project.run("-m", "benchmarks", *arguments)
    results = json.loads(output.read_text())

    has_trainer = importlib.util.find_spec("accelerate") is not None
    names = [row["name"] for row in results["training"]]
    assert names == ["plain float32 loop", "ours", *["Hugging Face Trainer"] * has_trainer]
    assert ("left out" in done.stderr) != has_trainer
    assert all(name in done.stdout for name in names)

    def printed(name):
        return [word for line in done.stdout.splitlines() if line.startswith(name + "  ") for word in line.split()]

    for row in results["training"]:
        assert row["seconds"] == statistics.median(row["seconds_all"])
        assert len(row["seconds_all"]) == results["repeats"]
        assert f"{4 * results['window'] / row['seconds']:,.0f}" in printed(row["name"])  # tokens/s, with batches of 4
        assert row["flops_utilization"] > 0
    for row in results["evaluation"]:
        seconds = statistics.median(row["seconds_all"])
        assert f"{row['windows'] / seconds:,.2f}" in printed(row["name"])
    assert len(results["data"]) == 3
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert not list((project.folder / "dataset").glob("benchmark_*"))
