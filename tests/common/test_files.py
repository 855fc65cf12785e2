"""Folders that are replaced: whole before and after a crash at any instant, and nothing else beside them is touched."""

import pytest

from common.files import present_folder, recover_folder, replace_folder


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
