"""analysis.py on a real dataset and on real TensorBoard files."""

import csv
import json
import time
from collections import Counter

import matplotlib.image
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from charts.runs import read_run
from common.model_files import load_tokenizer

NAMES = {
    "loss_train": "train_loss.png",
    "loss_dev": "dev_loss.png",
    "eval_perplexity_dev": "dev_eval_scores.png",
    "best_score_for_perplexity": "best_score_perplexity.png",
}


def write_run(folder, values, purge_step=None):
    """Scalars of a run: {step: perplexity}."""
    with SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step) as writer:
        for step, perplexity in values.items():
            for name in NAMES:
                sign = -1 if name.startswith("best") else 1
                writer.add_scalar(name, sign * perplexity, step)
    return folder


def is_chart(path):
    image = matplotlib.image.imread(path)
    return image.shape[0] > 300 and image.std() > 0.01


def test_data_prints_what_meta_says_and_draws(project, dataset_folder, tmp_path):
    done = project.run("analysis.py", "data", "--output", tmp_path)
    meta = json.loads((dataset_folder / "meta.json").read_text())
    for split, counts in meta["languages"]["Python"].items():
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"Python {split}"))
        numbers = [int(word.replace(",", "")) for word in row.split()[2:7]]
        assert numbers == [
            counts[key] for key in ("files", "windows", "window_tokens", "source_tokens", "source_bytes")
        ]
    for split_by, shares in meta["contamination"].items():
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"split by {split_by}"))
        assert row.split()[-2:] == [f"{shares[n]:.2%}" for n in ("20", "50")]
    assert all(is_chart(tmp_path / f"{name}.png") for name in ("tokens_per_file", "frequent_tokens", "contamination"))


def test_data_counts_tokens_of_files_and_short_windows_rightly(project, dataset_folder, tmp_path):
    meta = json.loads((dataset_folder / "meta.json").read_text())
    tokenizer = load_tokenizer("tiny")
    counts = Counter()
    for source in meta["sources"]:
        for path in source["files"]:
            counts.update(tokenizer.encode((project.folder / source["source"] / path).read_text()).ids)
    assert [token["count"] for token in meta["frequent_tokens"]] == [n for _, n in counts.most_common(50)]
    assert all(counts[token["id"]] == token["count"] for token in meta["frequent_tokens"])

    length = meta["flags"]["segment_len"]
    rows = [json.loads(line) for split in ("train", "dev") for line in (dataset_folder / f"{split}.jsonl").open()]
    short = sum(len(row["token_ids"]) < length for row in rows) / len(rows)
    done = project.run("analysis.py", "data", "--output", tmp_path)
    assert f"windows shorter than {length} tokens: {short:.1%}" in done.stdout
    newline = next(count for token, count in counts.items() if tokenizer.decode([token]) == "\n")
    assert f"⏎ {newline / counts.total():.1%}" in done.stdout


def test_a_share_that_could_not_be_measured_is_said(project, tmp_path):
    """Windows too short for any 20-gram."""
    command = ("dataset/convert.py", "--tokenizer", "pretrained/tiny", "--dataset_name", "short", "--segment_len", 15)
    assert "dev 20-grams that occur in train: none to measure" in project.run(*command).stdout
    command = ("analysis.py", "data", "--dataset_name", "short", "--format", "svg", "--output", tmp_path)
    rows = [line.split() for line in project.run(*command).stdout.splitlines() if line.startswith("split by")]
    assert [row[-2:] for row in rows] == [["-", "-"]] * 2
    assert (tmp_path / "contamination.svg").read_text().count("none to measure") == 4
    meta = project.folder / "dataset" / "short" / "json" / "meta.json"
    for shares in ({}, {str(n): 0.5 for n in range(1, 12)}):  # more than there are colours
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"contamination": {"file": shares}}))
        project.run(*command)


def test_runs_are_drawn_and_compared(project, tmp_path):
    fast = write_run(tmp_path / "fast", {10: 9.0, 20: 4.0, 30: 5.0})
    slow = write_run(tmp_path / "slow", {10: 9.5, 20: 8.0})
    done = project.run("analysis.py", "runs", fast, slow, "--names", "one", "other", "--output", tmp_path / "out")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(("one", "other"))}
    # steps, train loss, dev loss, perplexity, padded, best score, at step
    assert rows["one"] == ["30", "5.0000", "5.0000", "5.0000", "-", "-4.0000", "20"]
    assert rows["other"] == ["20", "8.0000", "8.0000", "8.0000", "-", "-8.0000", "20"]
    for folder in ("out", "out/one", "out/other"):  # overlaid, and each alone
        assert all(is_chart(tmp_path / folder / name) for name in NAMES.values())


def test_time_is_that_of_training_and_not_of_a_pause(tmp_path):
    for purge, steps in ((None, (0, 60, 120)), (61, (61, 121))):
        with SummaryWriter(str(tmp_path), purge_step=purge) as writer:
            for i, step in enumerate(steps):
                writer.add_scalar("tokens_seen", 100 * step, step, walltime=time.time() + 60 * i)
    run = read_run(tmp_path, "run")
    assert list(run.minutes) == [0, 60, 61, 121]
    minutes = run.positions([60, 61, 121], "time")
    assert minutes == pytest.approx([1, 1, 2], abs=0.2)  # the second process began after step 60
    assert run.positions([60, 121], "tokens") == [6000, 12100]


def test_another_programs_event_files_are_read(tmp_path):
    """As the 2020 reference wrote them: in any folder, in either form of scalar."""
    with SummaryWriter(str(tmp_path / "runs")) as writer:
        writer.add_scalar("eval_perplexity_dev", 3.5, 200, new_style=False)
        writer.add_scalar("eval_perplexity_dev", 3.0, 400, new_style=True)
    run = read_run(tmp_path / "runs", "run")
    assert run.scalars["eval_perplexity_dev"] == {200: 3.5, 400: 3.0}
    assert run.scalars["best_score_for_perplexity"] == {200: -3.5, 400: -3.0}


def test_the_reports_figures_stand_beside_ours(project, tmp_path):
    """In its layout, whatever the run was called; a different dataset is said in the caption."""
    settings = {"num_epochs_train": 1, "max_seq_length": 256, "lr": 1e-4, "warmup_ratio": 0.2, "dataset_name": "one"}
    for name, dataset in (("a", "one"), ("b", "another")):
        run = write_run(tmp_path / name, {10: 9.0, 20: 2.0})
        (run / "hyperparams.json").write_text(json.dumps(settings | {"dataset_name": dataset}))
    command = ("analysis.py", "runs", tmp_path / "a", tmp_path / "b", "--report", "--format", "svg", "--x", "time")
    done = project.run(*command, "--output", tmp_path / "out")
    table = list(csv.reader((tmp_path / "out" / "comparison.csv").open()))
    assert table[0] == ["parameter", "a", "report-3 (report)", "b"]
    rows = {row[0]: row[1:] for row in table}
    assert rows["lr"] == ["0.0001"] * 3
    assert rows["best_score_perplexity"] == ["-2.0", "-1.5279237031936646", "-2.0"]
    assert rows["dev_loss"][1] == "0.424139"
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| -2.0000 | -1.5279 | -2.0000 |" in text
    assert "datasets differ" in text
    assert "datasets differ" in done.stdout
    assert "<svg" in (tmp_path / "out" / "dev_loss.svg").read_text()
    assert "x tokens" in project.fails(*command[:-1], "tokens")


def test_a_torn_or_empty_event_file_is_reported_and_the_rest_is_used(project, tmp_path):
    run = write_run(tmp_path / "run", {10: 9.0, 20: 8.0})
    file = next((run / "tensorboard").iterdir())
    assert "note" not in project.run("analysis.py", "runs", run).stderr
    content = file.read_bytes()
    middle = content.rindex(b"loss_train")
    file.write_bytes(content[:middle] + b"x" + content[middle + 1 :])  # a checksum that does not hold
    (run / "tensorboard" / "events.out.tfevents.0").touch()
    done = project.run("analysis.py", "runs", run)
    notes = done.stderr.splitlines()
    assert [("damaged or empty" in note, note.startswith("note: ")) for note in notes] == [(True, True)] * 2
    assert is_chart(run / "figures" / "dev_loss.png")
    file.write_bytes(content[:-7])
    assert str(file) in project.run("analysis.py", "runs", run).stderr
    with file.open("wb") as opened:  # whole records, whose content is wrong
        writer = RecordWriter(opened)
        values = [Summary.Value(tag="loss_dev", simple_value=2.5), Summary.Value(tag="loss_dev", tensor=TensorProto())]
        writer.write(Event(step=3, summary=Summary(value=values)).SerializeToString())
        writer.write(b"\xff" * 9)
    done = project.run("analysis.py", "runs", run)
    assert "only its first 1 records" in done.stderr and " 2.5000 " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs"], "runs"),
        (["runs", "nowhere"], "no such folder"),
        (["runs", "dataset"], "no TensorBoard file"),
        (["runs", "a", "b", "--names", "one"], "--names"),
        (["data", "--dataset_name", "none"], "dataset/convert.py"),
        (["curves"], "curves"),
    ],
)
def test_bad_input(project, arguments, said):
    assert said in project.fails("analysis.py", *arguments)


def test_a_loop_of_links_and_a_name_that_fills_screens(project, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert "no such folder" in project.fails("analysis.py", "runs", tmp_path / "loop")
    message = project.fails("analysis.py", "runs", "x/" * 3000)
    assert len(message) < 900 and message.endswith("File name too long")
