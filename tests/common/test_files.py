"""Folders that are replaced: whole before and after a crash at any instant, and nothing else beside them is touched."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common import files
from common.command import InputError
from common.files import atomic_write, present_folder, recover_folder, replace_folder


class Crash(BaseException):
    pass


def write(path, text):
    with replace_folder(path) as new:
        (new / "file").write_text(text)


def test_a_users_own_folders_beside_it_stay(tmp_path):
    own = [tmp_path / f"json.{name}" for name in ("new", "old", "tmp", "bak", "1")]
    for folder in own:
        folder.mkdir()
        (folder / "precious").write_text("mine")
    for text in ("first", "second"):
        write(tmp_path / "json", text)
    recover_folder(tmp_path / "json")
    assert (tmp_path / "json" / "file").read_text() == "second"
    assert all((folder / "precious").read_text() == "mine" for folder in own)
    assert set(tmp_path.iterdir()) == {tmp_path / "json", *own}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_while_it_is_renamed_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, renames):
    path = tmp_path / "json"
    write(path, "first")
    rename, left = type(path).rename, [None] * renames

    def crash_or_rename(source, target):
        if not left:
            raise Crash
        left.pop()
        return rename(source, target)

    monkeypatch.setattr(type(path), "rename", crash_or_rename)
    with pytest.raises(Crash):
        write(path, "second")
    monkeypatch.undo()
    assert (present_folder(path) / "file").read_text() == "first"
    recover_folder(path)
    assert (path / "file").read_text() == "first"
    write(path, "third")
    assert [file.read_text() for file in tmp_path.rglob("file")] == ["third"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "last").symlink_to(tmp_path / "disk" / "last")
    for text in ("first", "second", "third"):
        write(tmp_path / "last", text)
        assert (tmp_path / "disk" / "last" / "file").read_text() == text
    assert (tmp_path / "last").is_symlink()
    assert len(list(tmp_path.rglob("*"))) == 4


KILLED = """
import os, sys
from pathlib import Path
from common.files import atomic_write, scratch_folder
with atomic_write(Path(sys.argv[1])) as file:
    (scratch_folder() / "file").write_text("x")
    print("writing", flush=True)
    {then}
"""


@pytest.mark.parametrize("write", [atomic_write, replace_folder])
def test_a_pipe_or_a_device_is_never_replaced(tmp_path, write):
    pipe, link = tmp_path / "pipe", tmp_path / "result"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(InputError, match="pipe: not a"), write(path):
            pass
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_what_killed_writers_left_is_removed_and_what_others_still_write_is_not(tmp_path):
    (tmp_path / "tmp").mkdir()
    environment = {"cwd": ROOT, "env": os.environ | {"TMPDIR": str(tmp_path / "tmp")}, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", KILLED.format(then="sys.stdin.read()"), tmp_path / "x.json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, **environment) as living:
        living.stdout.readline()
        then = "os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-c", KILLED.format(then=then), tmp_path / "x.json"], **environment)
        assert len(list(tmp_path.rglob("*"))) == 7
        (tmp_path / "x.json.note.tmp").write_text("mine")
        with atomic_write(tmp_path / "x.json") as file:
            file.write("whole")
        subprocess.run([sys.executable, "-c", KILLED.format(then="pass"), tmp_path / "y"], **environment, check=True)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["tmp", "x.json", f"x.json.{living.pid}.tmp", "x.json.note.tmp", "y"]
        assert len(list((tmp_path / "tmp").iterdir())) == 1
        living.stdin.close()
        assert living.wait() == 0


def test_only_one_holds_a_lock_and_no_empty_folder_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE_S", 0)
    said = f"{tmp_path}/a/b: in use by process {os.getpid()}"
    held = [files.lock(tmp_path / "a" / "b" / "lock") for _ in range(2)]
    with held[0], pytest.raises(InputError, match=said), held[1]:
        pass
    assert not (tmp_path / "a").exists()


def test_convert_finds_out_first_that_it_cannot_write(project):
    (project.folder / "dataset" / "in_the_way").write_text("a file")
    message = project.fails("dataset/convert.py", "--dataset_name", "in_the_way", "--tokenizer", "no/such/vocabulary")
    assert "in_the_way: a file; name a folder; choose another --dataset_name" in message


def test_problems_finds_out_first_that_it_cannot_write(project):
    output = project.folder / "dataset" / "source_code" / "problems.jsonl"
    output.mkdir()
    message = project.fails("dataset/problems.py")
    output.rmdir()
    assert f"{output}: a folder or a device; name a file; name another file with --output" in message


def test_the_name_of_a_run_alone_never_goes_to_the_hub(project):
    (project.folder / "model" / "lone" / "0_GPTSingleHead").mkdir(parents=True)
    message = project.fails("interact.py", "--model_path", "lone", "--prompt", "x")
    assert "lone: no such folder below" in message
    assert "there are the runs" in message
