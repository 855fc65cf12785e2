"""analysis.py on a real dataset and on real TensorBoard files."""

import json

import matplotlib.image
import pytest
from torch.utils.tensorboard import SummaryWriter

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
        numbers = [int(word.replace(",", "")) for word in row.split()[2:6]]
        assert numbers == [counts[key] for key in ("files", "windows", "source_tokens", "source_bytes")]
    assert f"{meta['contamination']['50']:.2%}" in done.stdout
    assert all(is_chart(tmp_path / name) for name in ("tokens_per_file.png", "frequent_tokens.png"))


def test_data_counts_each_token_once_and_short_windows_rightly(project, dataset_folder, model, tmp_path):
    from analysis import count_tokens

    meta = json.loads((dataset_folder / "meta.json").read_text())
    stride, length = meta["flags"]["stride"], meta["flags"]["segment_len"]
    rows = [json.loads(line) for line in (dataset_folder / "train.jsonl").open()]
    expected = sum(min(stride, len(row["token_ids"])) for row in rows)
    counts = count_tokens(dataset_folder / "train.jsonl", stride)
    assert counts.total() == expected
    newline = model.tokenize("\n")[0]
    assert counts[newline] == sum(row["token_ids"][:stride].count(newline) for row in rows)

    rows += [json.loads(line) for line in (dataset_folder / "dev.jsonl").open()]
    short = sum(len(row["token_ids"]) < length for row in rows) / len(rows)
    done = project.run("analysis.py", "data", "--output", tmp_path)
    assert f"windows shorter than {length} tokens: {short:.1%}" in done.stdout


def test_runs_are_drawn_and_compared(project, tmp_path):
    fast = write_run(tmp_path / "fast", {10: 9.0, 20: 4.0, 30: 5.0})
    slow = write_run(tmp_path / "slow", {10: 9.5, 20: 8.0})
    done = project.run("analysis.py", "runs", fast, slow, "--names", "one", "other", "--output", tmp_path / "out")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(("one", "other"))}
    assert rows["one"] == ["30", "5.0000", "5.0000", "5.0000", "4.0000", "20"]
    assert rows["other"] == ["20", "8.0000", "8.0000", "8.0000", "8.0000", "20"]
    assert all(is_chart(tmp_path / "out" / name) for name in NAMES.values())


def test_what_a_restart_voids_is_not_drawn(tmp_path):
    from analysis import read_run

    run = write_run(tmp_path / "run", {10: 9.0, 20: 8.0, 30: 99.0})
    write_run(run, {25: 7.0}, purge_step=21)
    assert read_run(run)["eval_perplexity_dev"] == {10: 9.0, 20: 8.0, 25: 7.0}


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
    assert [("torn or empty" in note, note.startswith("note: ")) for note in notes] == [(True, True)] * 2
    assert is_chart(run / "figures" / "dev_loss.png")
    file.write_bytes(content[:-7])
    assert str(file) in project.run("analysis.py", "runs", run).stderr


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
