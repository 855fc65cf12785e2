"""Source trees as people have them, through convert.py: whatever lies in them is converted, or said to be left out."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.command import InputError
from completion.repository.choice import work_tree
from dataset import convert as convert_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run convert.py in this process, with its datasets below tmp_path/project; gives meta.json and what it printed."""
    monkeypatch.setattr(convert_module, "ROOT", tmp_path / "project")

    def convert(*arguments, name="own"):
        command = ["convert.py", "--tokenizer", "tiny", "--dataset_name", name, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        convert_module.main()
        folder = tmp_path / "project" / "dataset" / name / "json"
        return json.loads((folder / "meta.json").read_text()), capsys.readouterr().out

    return convert


@pytest.fixture
def tree(tmp_path):
    """Two ordinary files, which every conversion needs."""
    return write(tmp_path / "tree", {"a.py": code("a"), "b.py": code("b")})


def code(name, lines=12):
    return "".join(f"{name}_{i} = {i}\n" for i in range(lines))


def write(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, bytes) else content.encode()
        (root / path).write_bytes(content)
    return root


def listen(path):
    with tempfile.TemporaryDirectory() as short:  # the name of a socket has at most some 100 characters
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(f"{short}/socket")
        shutil.move(f"{short}/socket", path)


UNUSABLE = {
    "a dangling link": (lambda path: path.symlink_to("user@host.1234:5678"), "No such file or directory"),
    "a circle of links": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a socket": (listen, "not a regular file"),
    "a linked device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "another encoding": (lambda path: path.write_bytes(b"x = 1\n# caf\xe9\n"), "not UTF-8"),
    "a wrong cookie": (lambda path: path.write_bytes(b"# coding: ascii\n# caf\xe9\n"), "not ASCII"),
    "no encoding": (lambda path: path.write_bytes(b"# coding: rot13\nx"), "rot13 is no encoding of a text"),
    "a binary": (lambda path: path.write_bytes(b"\x7fELF\0\0x = 1"), "binary, as it has NUL bytes"),
    "half of UTF-16": (lambda path: path.write_bytes("x = 1".encode("utf-16")[:-1]), "not UTF-16"),
    "nothing": (lambda path: path.touch(), "empty"),
    "white space": (lambda path: path.write_text(" \n\t\n"), "empty"),
    "a few characters": (lambda path: path.write_text("x=1"), "shorter than the stride of 10 tokens"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_cannot_be_used_is_named_and_the_rest_converted(convert, tree, kind):
    make, reason = UNUSABLE[kind]
    make(tree / ".#main.py")
    meta, printed = convert("--source", tree)
    (source,) = meta["sources"]
    assert source["skipped"] == {".#main.py": reason}
    assert set(source["files"]) == {"a.py", "b.py"}
    assert f"2 files read, 1 skipped (1 {reason})" in printed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(convert, tree):
    write(tree, {"closed/c.py": code("c")})
    (tree / "closed").chmod(0)
    (source,) = convert("--source", tree)[0]["sources"]
    (tree / "closed").chmod(0o700)
    assert source["skipped"] == {"closed": "folder: Permission denied"}


def test_a_folder_beyond_the_longest_path_is_named(convert, tree):
    here = Path.cwd()
    os.chdir(tree)
    try:
        for _ in range(25):
            Path("f" * 200).mkdir()
            os.chdir("f" * 200)
        Path("c.py").write_text(code("c"))
        (source,) = convert("--source", tree)[0]["sources"]
    finally:
        os.chdir(here)
    ((path, reason),) = source["skipped"].items()
    assert reason == "folder: File name too long"
    assert set(path) == {"f", "/"}


def test_a_deep_tree_is_read_to_its_end(convert, tree):
    deep = tree
    for _ in range(1200):
        deep /= "d"
        deep.mkdir()
    write(deep, {"c.py": code("c")})
    (source,) = convert("--source", tree)[0]["sources"]
    assert [path for path in source["files"] if path.endswith("d/c.py")]
    for _ in range(1200):  # pytest's own cleaning up is recursive
        (deep / "c.py").unlink(missing_ok=True)
        deep.rmdir()
        deep = deep.parent


ENCODED = {
    "latin-1": "# -*- coding: latin-1 -*-\nname = 'größe'\n" + code("x"),
    "shift_jis": "#!/usr/bin/python\n# vim: set fileencoding=shift_jis :\nname = '漢字'\n" + code("x"),
    "utf-8-sig": "name = '漢字'\n" + code("x"),
    "utf-16": "name = '漢字'\n" + code("x"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_a_file_in_another_encoding_gives_the_rows_of_its_text(convert, tree, tmp_path, encoding):
    rows = []
    for number, codec in enumerate((encoding, "utf-8")):
        (tree / "c.py").write_bytes(ENCODED[encoding].replace("\n", "\r\n").encode(codec))
        if codec == "utf-8":  # with a cookie that says otherwise, but for the mark, which wins
            (tree / "c.py").write_bytes(b"\xef\xbb\xbf" + ENCODED[encoding].encode())
        convert("--source", tree, name=f"n{number}")
        folder = tmp_path / "project" / "dataset" / f"n{number}" / "json"
        rows.append((folder / "train.jsonl").read_bytes() + (folder / "dev.jsonl").read_bytes())
    assert rows[0] == rows[1]
    assert b'"path": "c.py"' in rows[0]


def test_upper_case_endings_are_sources_too(convert, tree):
    write(tree, {"UPPER.PY": code("u"), "A.Java": code("j"), "B.JAVA": code("k")})
    meta, _ = convert("--source", tree)
    assert set(meta["languages"]) == {"Python", "Java"}
    assert {"UPPER.PY", "A.Java", "B.JAVA"} <= set(meta["sources"][0]["files"])


def test_a_language_with_too_few_files_does_not_stop_the_others(convert, tree):
    write(tree, {"Stray.java": code("j", 40)})
    meta, printed = convert("--source", tree)
    assert set(meta["languages"]) == {"Python"}
    reason = "too few Java files for a train and a dev split"
    assert meta["sources"][0]["skipped"] == {"Stray.java": reason}
    assert f"1 skipped (1 {reason})" in printed


def test_what_was_installed_or_built_is_left_out_and_can_be_had(convert, tree):
    write(tree, {"env/pyvenv.cfg": "home = /usr", "env/lib/python3.11/site-packages/p/c.py": code("c")})
    write(tree, {"lib/site-packages/d.py": code("d"), "web/node_modules/n/e.py": code("e")})
    write(tree, {"build/lib/f.py": code("f"), "venv/bin/g.py": code("g"), "dist/h.py": code("h")})
    write(tree, {"src/build/__init__.py": code("i"), ".hidden/j.py": code("j"), "src/__pycache__/k.py": code("k")})
    meta, printed = convert("--source", tree)
    (source,) = meta["sources"]
    assert set(source["files"]) == {"a.py", "b.py", "src/build/__init__.py"}
    assert source["left_out"] == {
        "env": "a virtual environment",
        "lib/site-packages": "installed or built",
        "web/node_modules": "installed or built",
        "build": "installed or built",
        "venv": "installed or built",
        "dist": "installed or built",
    }
    assert "left out: build, dist, env and 3 more; --include_ignored takes them" in printed
    meta, printed = convert("--source", tree, "--include_ignored")
    assert len(meta["sources"][0]["files"]) == 3 + 6
    assert "left out" not in printed
    with pytest.raises(InputError, match="left out: site-packages; --include_ignored"):
        convert("--source", tree / "lib")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_git_ignores_is_left_out(convert, tree):
    subprocess.run(["git", "init", "-q", tree], check=True)
    write(tree, {".gitignore": "generated/\n*_pb2.py\n", "generated/c.py": code("c"), "p/x_pb2.py": code("d")})
    write(tree, {"p/e.py": code("e")})
    (source,) = convert("--source", tree)[0]["sources"]
    assert set(source["files"]) == {"a.py", "b.py", "p/e.py"}
    assert source["left_out"] == {"generated": "ignored by git", "p/x_pb2.py": "ignored by git"}
    assert len(convert("--source", tree, "--include_ignored")[0]["sources"][0]["files"]) == 5
    write(tree, {"generated/f.py": code("f")})
    (source,) = convert("--source", tree / "generated")[0]["sources"]  # a folder that was named is meant
    assert set(source["files"]) == {"c.py", "f.py"}


def test_one_large_file_is_said_and_leaves_a_sensible_split(convert, tree):
    write(tree, {f"{i}.py": code(f"f{i}", 20) for i in range(30)} | {"generated.py": code("g", 9000)})
    meta, printed = convert("--source", tree)
    splits = meta["languages"]["Python"]
    assert splits["train"]["files"] > 20 and splits["dev"]["files"] >= 3
    assert "note: generated.py alone gives 9" in printed
    assert "note" not in convert("--source", tree / "a.py", tree / "b.py")[1]


def test_a_large_file_is_cut_into_the_same_tokens(convert, tmp_path, monkeypatch):
    rng = random.Random(4)
    numbers = ", ".join(str(rng.randrange(10**6)) for _ in range(4000))
    sources = write(tmp_path / "large", {"one.py": f"x = [{numbers}]", "two.py": f"y = [{numbers[::-1]}]\n" * 2})
    contents = []
    for characters, windows in ((1_000_000, 5000), (500, 7)):
        monkeypatch.setattr("dataset.windows.BATCH_CHARACTERS", characters)
        monkeypatch.setattr("dataset.rows.WINDOWS_AT_ONCE", windows)
        convert("--source", sources)
        contents.append({file.name: file.read_bytes() for file in tmp_path.rglob("*.json*")})
    assert contents[0] == contents[1]


def test_the_bytes_do_not_depend_on_the_locale(tmp_path):
    write(tmp_path / "源码", {"漢字.py": code("a"), "größe.py": code("b"), "zebra.py": code("c")})
    (tmp_path / "源码" / os.fsdecode(b"latin-\xe9.py")).write_text(code("d"))
    contents = []
    for number, locale in enumerate(
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"})
    ):
        command = [sys.executable, ROOT / "dataset" / "convert.py", "--source", "源码", "--tokenizer", "tiny"]
        project = tmp_path / f"project{number}"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns("Python", "model", ".git", "*_foreign*"))
        command[1] = project / "dataset" / "convert.py"
        subprocess.run(command, cwd=tmp_path, env=os.environ | locale, check=True, capture_output=True)
        folder = project / "dataset" / "source_code" / "json"
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    assert "漢字.py" in json.loads(contents[0]["meta.json"])["sources"][0]["files"]


# ---- nothing is deleted that convert.py has not written


@pytest.mark.parametrize("inside", ["json", "json/src"])
def test_sources_in_the_output_are_refused_and_kept(convert, tmp_path, inside):
    sources = write(tmp_path / "project" / "dataset" / "own" / inside, {"a.py": code("a"), "b.py": code("b")})
    with pytest.raises(InputError, match="which is replaced"):
        convert("--source", sources)
    assert len(list(sources.iterdir())) == 2


def test_an_output_folder_with_other_files_is_refused_and_kept(convert, tree, tmp_path):
    package = write(tmp_path / "project" / "dataset" / "own" / "json", {"__init__.py": "", "train.jsonl": "mine"})
    with pytest.raises(InputError, match=r"holds __init__\.py, which convert\.py has not written"):
        convert("--source", tree)
    assert (package / "train.jsonl").read_text() == "mine"
    shutil.rmtree(package)
    package.write_text("a file")
    with pytest.raises(InputError, match="is not a folder"):
        convert("--source", tree)
    package.unlink()
    package.symlink_to(tree)
    with pytest.raises(InputError):
        convert("--source", tree)
    assert len(list(tree.iterdir())) == 2


def test_a_tree_below_which_the_output_lies_is_converted(convert, tmp_path):
    sources = write(tmp_path / "project" / "dataset" / "own", {"a.py": code("a"), "b.py": code("b")})
    assert len(convert("--source", sources)[0]["sources"][0]["files"]) == 2
    assert len(convert("--source", sources)[0]["sources"][0]["files"]) == 2
    assert {path.name for path in sources.iterdir()} == {"a.py", "b.py", "json"}


def test_many_identical_files_do_not_take_quadratic_time():
    """Ten times the files, and the steps of the search for a file's group do not grow more than that."""
    from dataset.sources import SourceFile
    from dataset.splits import group

    def steps(number):
        count = 0

        def tracer(frame, event, argument):
            nonlocal count
            count += event == "line"
            return tracer

        files = [SourceFile(Path(f"{i}.py"), ".", f"{i}.py", "Python", digest="same") for i in range(number)]
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            assert len(group(files, "file")) == 1
        finally:
            sys.settrace(before)
        return count

    assert steps(1000) < 15 * steps(100)


def test_windows_that_lie_apart_are_counted_rightly(convert, tmp_path):
    """Few windows of long files, none of which is cut short by the file's end."""
    sources = write(tmp_path / "long", {"a.py": code("a", 2000), "b.py": code("b", 2000)})
    meta, _ = convert("--source", sources, "--segment_len", 62, "--stride", 2000)
    for counts in meta["languages"]["Python"].values():
        assert counts["windows"] > 0 == counts["short_windows"]
        assert counts["window_tokens"] == 62 * counts["windows"]


def test_a_folder_whose_name_is_not_utf8(convert, tree, tmp_path):
    folder = tree.rename(tmp_path / "\udce9t")  # a byte E9; git's error names it
    meta, _ = convert("--source", folder, "--stride", 5)
    assert len(meta["sources"][0]["files"]) == 2
    subprocess.run(["git", "init", "-q", folder], check=True)
    assert work_tree(folder / "a.py") == folder
