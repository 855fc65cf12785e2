"""analysis.py results: what evaluate.py --problems has written, as one table and one chart."""

import json

import matplotlib.image
import pytest

from charts.drawing import Bar, interval_chart

RESULT = {
    "model": "model/one",
    "problems": 164,
    "samples_per_problem": 1,
    "pass_at_k": {"1": {"value": 0.25, "low": 0.2, "high": 0.3}},
    "shares": {"parses": 0.9, "runs": 0.8, "finished": 0.7, "repeats": 0.125},
    "problems_file": "HumanEval.jsonl.gz",
    "problems_sha256": "a" * 64,
    "settings": {"temperature": 0.0, "stop": "block"},
    "sandbox": "namespaces",
    "engine": "llama.cpp, q8_0",
}
SAMPLED = {
    "samples_per_problem": 10,
    "pass_at_k": {"10": {"value": 0.5, "low": 0.4, "high": 0.6}, "1": {"value": 0.3, "low": 0.2, "high": 0.4}},
    "settings": {"temperature": 0.2, "stop": "words"},
}


def write(path, **changes):
    path.write_text(json.dumps(RESULT | changes))
    return path


def rows(text):
    """The cells of each row of the tables, by the name in the first."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines}


def test_results_of_the_same_problems_stand_in_one_table(project, tmp_path):
    files = [write(tmp_path / "a.json"), write(tmp_path / "b.json", **SAMPLED, model="model/other|one")]
    done = project.run("analysis.py", "results", *files, "--output", tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    assert text in done.stdout
    assert text.splitlines()[0] == "HumanEval.jsonl.gz (aaaaaaaa): 164 problems"
    assert text.splitlines()[2].split("|")[3:5] == [" pass@1 (95 % interval) ", " pass@10 (95 % interval) "]
    table = rows(text.replace("\\|", "/"))
    rest = ["90.0%", "80.0%", "70.0%", "12.5%", "164", "namespaces", "llama.cpp, q8_0"]
    assert table["one"] == ["greedy, --stop block", "25.0% (20.0% to 30.0%)", "-", *rest]
    assert table["other/one"][:3] == [
        "10 at 0.2, --stop words", "30.0% (20.0% to 40.0%)", "50.0% (40.0% to 60.0%)"
    ]  # fmt: skip
    image = matplotlib.image.imread(tmp_path / "out" / "results.png")
    assert image.shape[0] > 300 and image.std() > 0.01


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"problems_sha256": "b" * 64}, "HumanEval.jsonl.gz (bbbbbbbb): 164 problems"),
        ({"problems": 60}, "HumanEval.jsonl.gz (aaaaaaaa): 60 problems"),
        ({"settings": {"infill": "line", "no_infill": True}}, "HumanEval.jsonl.gz (aaaaaaaa): 164 single lines"),
    ],
)
def test_results_of_different_problems_are_kept_apart(project, tmp_path, changes, title):
    files = [write(tmp_path / "a.json"), write(tmp_path / "b.json", **changes), write(tmp_path / "c.json")]
    flags = ("--names", "one", "two", "three", "--format", "svg", "--output", tmp_path / "out")
    text = project.run("analysis.py", "results", *files, *flags).stdout
    first, second = text.split(title)
    assert set(rows(first)) > {"one", "three"} and "two" not in rows(first) and "two" in rows(second)
    assert "do not compare" in second
    assert (tmp_path / "out" / "results.svg").read_text().count("HumanEval.jsonl.gz") >= 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        (json.dumps({"loss": 1.0}), "is missing"),
        (json.dumps(RESULT | {"pass_at_k": {"1": {"value": 0.5, "low": 0.6, "high": 0.7}}}), "pass_at_k.1"),
        (json.dumps(RESULT | {"pass_at_k": {"one": {"value": 0.5, "low": 0.4, "high": 0.6}}}), "pass_at_k.one"),
        (json.dumps(RESULT | {"pass_at_k": {"9" * 5000: {"value": 0.5, "low": 0.4, "high": 0.6}}}), "pass_at_k.999"),
        (json.dumps(RESULT | {"settings": {"infill": []}}), "settings.infill"),
        (json.dumps(RESULT | {"problems": 10**30}), "problems is"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_result_costs_one_line(project, tmp_path, content, said):
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    flags = (write(tmp_path / "a.json"), tmp_path / "b.json", "--output", tmp_path / "out")
    message = project.fails("analysis.py", "results", *flags)
    assert said in message and "b.json" in message and "evaluate.py --problems" in message
    assert not (tmp_path / "out").exists()


def test_a_name_for_each_result(project, tmp_path):
    assert "--names" in project.fails("analysis.py", "results", write(tmp_path / "a.json"), "--names", "one", "two")


def test_panels_share_an_axis_that_is_labelled_once_and_a_legend_in_the_bars_colours():
    whole = {"pass@1": (0.2, 0.1, 0.3), "pass@10": (0.4, 0.3, 0.5)}
    figure = interval_chart({"one": [Bar("a", whole)], "other": [Bar("b", {"pass@1": (0.2, 0.1, 0.3)})]}, "(%)")
    first, last = figure.axes
    assert [any(label.get_visible() for label in axes.get_xticklabels()) for axes in (first, last)] == [False, True]
    assert first.get_xlim() == last.get_xlim()
    bars = [patch.get_facecolor() for patch in first.patches]
    assert [handle.get_facecolor() for handle in figure.legends[0].legend_handles] == bars
