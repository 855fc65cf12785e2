"""TensorBoard files, settings and names of runs as people have them, through analysis.py."""

import csv
import json
import math
import shlex
import shutil
import subprocess
import sys
import warnings

import matplotlib.image
import pytest
from torch.utils.tensorboard import SummaryWriter

import analysis
import charts.drawing
from charts.runs import read_run
from common.command import InputError

TAGS = ("loss_train", "loss_train_recent", "loss_dev", "eval_perplexity_dev")


def write_run(folder, *files):
    """Each file is {step: value}, or the pair of its purge step and that."""
    for number, file in enumerate(files):
        purge, values = file if isinstance(file, tuple) else (None, file)
        with SummaryWriter(str(folder / "tensorboard"), purge_step=purge, filename_suffix=f".{number}") as writer:
            for step, value in values.items():
                for tag in TAGS:
                    writer.add_scalar(tag, value, step)
    return folder


@pytest.fixture
def analyse(tmp_path, monkeypatch, capsys):
    """Run `analysis.py runs` in this process, with warnings as errors; gives what it printed."""

    def analyse(*arguments):
        command = ["analysis.py", "runs", *map(str, arguments), "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            analysis.main()
        return capsys.readouterr().out

    return analyse


def results(folder):
    rows = list(csv.reader((folder / "comparison.csv").open(encoding="utf-8")))
    return {row[0]: row[1] for row in rows}


CURVES = {
    "interleaved files": ([{1: 9, 3: 7, 5: 5}, {2: 8, 4: 6, 6: 4}], {1: 9, 2: 8, 3: 7, 4: 6, 5: 5, 6: 4}),
    "steps that go back": ([{10: 9, 30: 7, 20: 8}], {10: 9, 20: 8, 30: 7}),
    "a restart": ([{10: 9, 20: 8, 30: 99}, (21, {25: 7})], {10: 9, 20: 8, 25: 7}),
    "two restarts": ([{1: 9, 2: 99}, (2, {2: 8, 3: 99, 4: 99}), (3, {3: 7})], {1: 9, 2: 8, 3: 7}),
    "a restart from the first step": ([{10: 9, 20: 8}, (1, {10: 7})], {10: 7}),
    "a step twice": ([{10: 9}, {10: 8, 20: 7}], {10: 8, 20: 7}),
}


@pytest.mark.parametrize("kind", CURVES)
def test_a_curve_is_whole_and_in_order(tmp_path, analyse, kind):
    files, expected = CURVES[kind]
    run = write_run(tmp_path / "run", *files)
    assert list(read_run(run, "run").scalars["loss_dev"].items()) == list(expected.items())
    analyse(run)
    found = results(tmp_path / "out")
    assert float(found["best_score_perplexity"]) == -min(expected.values())
    assert int(found["steps"]) == max(expected)


def test_the_axes_of_a_curve_that_goes_back_are_right(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (10, 30, 20, 40):
            writer.add_scalar("tokens_seen", 100 * step, step, walltime=1e9 + 60 * step)
    run = read_run(tmp_path, "run")
    assert run.positions([10, 20, 30, 40], "tokens") == [1000, 2000, 3000, 4000]
    assert run.positions([20, 40], "time")[1] == pytest.approx(20 + run.positions([20], "time")[0])


@pytest.mark.parametrize("values", [{1: math.nan, 2: 4, 3: 5}, {1: 5, 2: math.inf, 3: 4}, {1: 4, 2: 9, 3: math.nan}])
def test_the_best_score_is_of_finite_values(tmp_path, analyse, values):
    analyse(write_run(tmp_path / "run", values))
    assert float(results(tmp_path / "out")["best_score_perplexity"]) == -4
    assert values[int(results(tmp_path / "out")["best_step"])] == 4


def test_a_run_without_a_finite_value_is_drawn_all_the_same(tmp_path, analyse):
    analyse(write_run(tmp_path / "run", {1: math.nan, 2: math.nan}))
    assert results(tmp_path / "out")["best_score_perplexity"] == ""


def test_folders_and_other_files_among_the_logs_are_passed_over(tmp_path, analyse):
    run = write_run(tmp_path / "run", {1: 9, 2: 8})
    (run / "tensorboard" / "events.out.tfevents.dir").mkdir()
    (run / "tensorboard" / "events.out.tfevents.gone").symlink_to("nowhere")
    (run / "tensorboard" / "notes.txt").write_text("mine")
    analyse(run)
    assert float(results(tmp_path / "out")["dev_loss"]) == 8


def test_the_trainer_of_hugging_face_is_drawn(tmp_path, analyse):
    with SummaryWriter(str(tmp_path / "hf")) as writer:
        for step in range(1, 61):
            writer.add_scalar("train/loss", 5 - step / 20, step)
            writer.add_scalar("train/learning_rate", 1e-4, step)
            writer.add_scalar("train/epoch", step / 60, step)
        writer.add_scalar("eval/loss", 2.5, 60)
        writer.add_text("args", "{}")
    printed = analyse(tmp_path / "hf")
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {
        "train_loss.png",
        "dev_loss.png",
        "learning_rate.png",
    }
    assert float(results(tmp_path / "out")["train_loss"]) == 2
    assert float(results(tmp_path / "out")["dev_loss"]) == 2.5
    assert "learning_rate.png" in printed


def test_a_run_with_nothing_to_draw_names_what_it_has(tmp_path, analyse):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("reward", 1.0, 1)
        writer.add_scalar("length", 1.0, 1)
    with pytest.raises(InputError, match="only length, reward, for which there is no chart; name a run"):
        analyse(tmp_path / "run")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "the content is [1, 2], not an object"),
        ('{"lr": "fast"}', 'lr is "fast", not a finite number'),
        ('{"dataset_name": 3}', "dataset_name is 3, not a text"),
        ('{"dev_windows": null}', "dev_windows is null, not an integer"),
        ('{"lr": 1', "not JSON, perhaps torn"),
        ("[" * 100_000, "not JSON, perhaps torn"),
    ],
)
def test_settings_that_someone_edited_get_one_line(tmp_path, analyse, content, said):
    run = write_run(tmp_path / "run", {1: 9})
    (run / "hyperparams.json").write_text(content)
    with pytest.raises(InputError) as caught:
        analyse(run)
    assert f"{run / 'hyperparams.json'}: " in str(caught.value)
    assert said in str(caught.value)


def test_settings_that_are_strange_but_right_are_taken(tmp_path, analyse):
    run = write_run(tmp_path / "run", {1: 9})
    (run / "hyperparams.json").write_text(json.dumps({"dataset_name": "../../\0", "lr": 1, "more": [], "recipe": "x"}))
    analyse(run)


NAMES = [
    "_hidden",
    "a $x$ and $",
    "$",
    "100 %",
    "a|b",
    "漢字",
    "größe",
    "😀",
    "{x}",
    "a&b<c>",
    "^_^",
    "x" * 200,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_be_called_anything(tmp_path, analyse, name):
    """Its name stands in the legend, in the title and in the table; there is no warning of a missing glyph."""
    for number in (1, 2):
        write_run(tmp_path / str(number), {1: 9, 2: 8})
    analyse(tmp_path / "1", tmp_path / "2", "--names", name, "other")
    lines = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"| parameter | {name.replace('|', chr(92) + '|')} | other |"
    image = matplotlib.image.imread(tmp_path / "out" / "dev_loss.png")
    assert (image[-60:, :, :3].min(axis=(0, 2)) < 0.5).any(), "no legend"
    assert (tmp_path / "out" / name / "dev_loss.png").is_file()


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "a\\b", ".hidden", "/abs", "../up", "two\nlines", "\x1b[31m", "bell\a"]
)
def test_a_name_that_is_no_folder_is_refused(tmp_path, analyse, name):
    for number in (1, 2):
        write_run(tmp_path / str(number), {1: 9, 2: 8})
    with pytest.raises(InputError, match="must be a plain folder name"):
        analyse(tmp_path / "1", tmp_path / "2", "--names", name, "other")
    assert {file.name for file in tmp_path.iterdir()} == {"1", "2"}


def test_the_training_loss_is_the_recent_one_and_under_report_the_mean_of_the_epoch(tmp_path, monkeypatch):
    drawn = {}

    def keep(lines, levels, axis, y_label, is_noisy, may_be_log):
        drawn[y_label] = ([list(line.y) for line in lines], is_noisy)
        return shown(lines, levels, axis, y_label, is_noisy, may_be_log)

    shown = charts.drawing.line_chart
    monkeypatch.setattr(charts.drawing, "line_chart", keep)
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(1, 4):
            writer.add_scalar("loss_train", 10 * step, step)
            writer.add_scalar("loss_train_recent", step, step)
    for report, label, values, noisy in (
        ([], "training loss (nats", [1, 2, 3], True),
        (["--report"], "mean of the epoch", [10, 20, 30], False),
    ):
        drawn.clear()
        monkeypatch.setattr(
            sys, "argv", ["analysis.py", "runs", str(tmp_path / "run"), "--output", str(tmp_path / "o"), *report]
        )
        analysis.main()
        (found,) = [drawn[name] for name in drawn if label in name]
        assert found == ([values], noisy)
    assert float(results(tmp_path / "o")["train_loss"]) == 30


def test_files_are_written_before_anything_is_printed(project, tmp_path):
    """So that `| head -1` loses none."""
    run = write_run(tmp_path / "run", {1: 9, 2: 8})
    command = f"{shlex.quote(sys.executable)} analysis.py runs {shlex.quote(str(run))} | true"
    done = subprocess.run(command, shell=True, cwd=project.folder, capture_output=True, text=True)
    assert done.stderr == ""
    assert {file.name for file in (run / "figures").iterdir()} >= {"dev_loss.png", "comparison.csv", "train_loss.png"}


def test_an_old_dataset_is_to_be_converted_again(project, tmp_path):
    folder = project.folder / "dataset" / "old" / "json"
    shutil.copytree(project.folder / "dataset" / "source_code" / "json", folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format_version": 2}))
    said = project.fails("analysis.py", "data", "--dataset_name", "old")
    assert "format_version is 2" in said and said.endswith("run dataset/convert.py again")
    shutil.rmtree(folder.parent)
