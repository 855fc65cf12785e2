"""adapt.py as a real process: measured, trained and measured again in the time given, killed, and with bad inputs."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MODULES = (
    "bisect", "heapq", "textwrap", "shlex", "string", "queue", "sched", "fnmatch", "colorsys", "csv", "copy", "cmd",
    "code", "bdb", "calendar", "gettext",
)  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repositories") / "tools"
    folder.mkdir()
    for name in MODULES:
        shutil.copy(Path(os.__file__).parent / f"{name}.py", folder)
    (folder / "short.py").write_text("LIMIT = 3\n")
    return folder


def start_and_kill(project, command, when) -> str:
    """Kill the command once `when`, of a line that it prints and its state, is true; returns what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, command)], cwd=project.folder, stdout=subprocess.PIPE, text=True
    )
    said = ""
    for line in process.stdout:
        said += line
        if when(line):
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL, said
    process.stdout.close()
    return said


def change(file: Path, **new) -> dict:
    """The state, with what would take minutes already spent."""
    state = json.loads(file.read_text())
    for key, value in new.items():
        *path, last = key.split("__")
        functools.reduce(dict.__getitem__, path, state)[last] = value
    file.write_text(json.dumps(state))
    return state


def test_killed_at_any_time_the_same_command_goes_on(project, repository, without_markers):
    output = project.folder / "adapted.json"
    command = ["adapt.py", repository, "--model_select", without_markers, "--minutes", 5, "--output", output]
    run = project.folder / "model" / "tools_adapted"
    file = run / "adapt.json"

    def some_places(line):
        while line.startswith("measuring the base"):
            if len(json.loads(file.read_text()).get("before", {"places": []})["places"]) >= 4:
                break
            time.sleep(0.1)
        return line.startswith("measuring the base")

    said = start_and_kill(project, command, some_places)
    change(file, before__seconds=60, config__evaluation_steps=2, config__dev_windows=8)
    start_and_kill(project, command, lambda line: line.lstrip().startswith("step 4"))
    state = change(file, spent=290)
    done = project.run(*command)
    steps = re.findall(r"step (\d+) of (\d+)", done.stdout)
    assert steps[-1][0] == steps[-1][1] and int(steps[-1][0]) < state["config"]["max_steps"]  # ends in time
    assert "files read" in said
    assert "files read" not in done.stdout
    assert "adapted + context minus base + context" in done.stdout
    assert f"python serve.py --model_path {run} --repository {repository}" in done.stdout
    result = json.loads(output.read_text())
    assert output.with_suffix(".png").exists()
    assert result["answers"]["before"] == state["before"]["places"]
    assert json.loads((run / "0_GPTSingleHead" / "average.json").read_text())["share"] == result["share"]
    before, after = result["answers"]["before"], result["answers"]["after"]
    assert [place["wanted"] for place in before][: len(after)] == [place["wanted"] for place in after]
    # A few steps of the warm-up change the model, and need not improve it.
    assert result["losses"]["after"]["project"]["loss"] != result["losses"]["before"]["project"]["loss"]
    card = (run / "0_GPTSingleHead" / "README.md").read_text()
    assert "`tools`, not in git" in card
    assert "`short.py`" in card
    assert (run / "tools_adapted.gguf").exists()

    # After a week: another run, which holds out the same files, and starts from the better model.
    again = project.run(*command[:-2], "--minutes", 0.01, check=False)
    assert "from" in again.stdout
    assert f"{run}" in again.stdout
    assert "0.01 minutes are too few" in again.stderr
    metas = [project.folder / "dataset" / f"tools_adapted{part}" / "json" / "meta.json" for part in ("", "_2")]
    sources = [json.loads(file.read_text())["sources"][0] for file in metas]
    assert sources[0]["dev_files"] == sources[1]["dev_files"]
    assert not (project.folder / "model" / "tools_adapted_2").exists()  # nothing was begun


def test_what_cannot_work_is_said_before_time_is_spent(project, tmp_path, without_markers):
    assert "no such folder" in project.fails("adapt.py", tmp_path / "nowhere")
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"{name.upper()} = 1\n" * 40)
    message = project.fails("adapt.py", tmp_path, "--model_select", without_markers, "--run_name", "little")
    assert "tokens to train on; at least" in message
    assert "no .py or .java file" in project.fails("adapt.py", project.folder / "pretrained")
    assert "--minutes 0" in project.fails("adapt.py", tmp_path, "--minutes", 0)
    assert "no such folder" in project.fails("adapt.py", tmp_path, "--model_select", "./nothing")


def test_a_state_of_an_older_version_or_with_parts_missing_is_refused(project, tmp_path):
    file = project.folder / "model" / "old_adapted" / "adapt.json"
    file.parent.mkdir(parents=True)
    (tmp_path / "old").mkdir()
    place = {"file": "a.py", "wanted": "1", "answers": {"prefix, suffix": {"exact": True}}}
    stage = {"seconds": 1.0, "places": [place]}
    for wrong, expected in (
        ({"before": stage}, "before.places.0.answers.prefix, suffix.bits is missing"),
        ({"after": stage | {"places": [place | {"answers": {}}]}}, "a place: missing"),
        ({"trained": None}, "peak_memory: missing"),
        ({"config": {}}, "loss_windows, total_steps: missing"),
    ):
        file.write_text(json.dumps({"flags": {}, "spent": 1.0} | wrong))
        message = project.fails("adapt.py", tmp_path / "old")
        assert f"adapt.json: {expected}; remove the folder" in message
