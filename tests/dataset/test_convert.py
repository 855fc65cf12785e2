"""dataset/convert.py and dataset/vocabulary.py, run as a user runs them."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from conftest import ROOT
from tokenizers import Tokenizer

from common.files import lock
from common.model_files import load_tokenizer
from dataset.format import read_meta
from dataset.splits import split_sources

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def byte_vocabulary(project, tmp_path_factory):
    """A vocabulary without merges, so that every byte of a text is one token."""
    folder = tmp_path_factory.mktemp("bytes")
    project.run("dataset/vocabulary.py", "--source", STDLIB / "abc.py", "--vocab_size", 257, "--output", folder)
    return folder


@pytest.fixture
def convert(project, byte_vocabulary):
    """Run convert.py into a throwaway dataset; gives its folder back."""
    name = f"test_{uuid.uuid4().hex[:8]}"

    def convert(*arguments, tokenizer=byte_vocabulary, code=0, **options):
        command = ("dataset/convert.py", "--dataset_name", name, "--tokenizer", tokenizer, *arguments)
        result = project.run(*command, check=False, **options)
        assert result.returncode == code, result.stdout + result.stderr
        return project.folder / "dataset" / name / "json" if code == 0 else result

    yield convert
    shutil.rmtree(project.folder / "dataset" / name, ignore_errors=True)


def rows(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]


def meta(folder):
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def write_tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def random_text(rng, length):
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz \n", k=length))


def paths(folder, split):
    return {row["path"] for row in rows(folder, split)}


# ---- windows and rows


def test_windows_are_cut_as_by_hand(convert, byte_vocabulary, tmp_path):
    write_tree(tmp_path, {"b/one.py": "abcdefghijklmnopqrstuvw", "two.py": "0123456789ABCDE", "Three.java": "x" * 9})
    write_tree(tmp_path, {"Four.java": "y" * 5})
    folder = convert("--source", tmp_path, "--segment_len", 8, "--stride", 5, "--dev_size", 0.4)
    tokenizer = Tokenizer.from_file(str(byte_vocabulary / "tokenizer.json"))
    windows = defaultdict(list)
    for row in rows(folder, "train") + rows(folder, "dev"):
        windows[row["label"], row["path"]].append(tokenizer.decode(row["token_ids"]))
    assert windows == {
        ("Python", "b/one.py"): ["abcdefgh", "fghijklm", "klmnopqr", "pqrstuvw"],
        ("Python", "two.py"): ["01234567", "56789ABC", "ABCDE"],
        ("Java", "Three.java"): ["xxxxxxxx"],
        ("Java", "Four.java"): ["yyyyy"],
    }
    languages = meta(folder)["languages"]
    counted = Counter()
    for split in ("train", "dev"):
        for label in ("Python", "Java"):
            counted.update({(label, name): n for name, n in languages[label][split].items()})
            assert languages[label][split]["windows"] == sum(r["label"] == label for r in rows(folder, split)) > 0
    assert counted == {
        ("Python", "files"): 2,
        ("Python", "windows"): 7,
        ("Python", "short_windows"): 1,
        ("Python", "window_tokens"): 4 * 8 + 8 + 8 + 5,
        ("Python", "source_tokens"): 23 + 15,
        ("Python", "source_bytes"): 23 + 15,
        ("Java", "files"): 2,
        ("Java", "windows"): 2,
        ("Java", "short_windows"): 1,
        ("Java", "window_tokens"): 13,
        ("Java", "source_tokens"): 14,
        ("Java", "source_bytes"): 14,
    }


def test_whole_files_puts_every_token_into_one_window(convert, byte_vocabulary, tmp_path):
    texts = {"a.py": "x", "b.py": "0123456789ABCDEF", "c.py": "0123456789abcdefg", "d.py": "y = 2\n" * 9}
    write_tree(tmp_path, texts)
    folder = convert("--source", tmp_path, "--segment_len", 8, "--whole_files")
    tokenizer = Tokenizer.from_file(str(byte_vocabulary / "tokenizer.json"))
    windows = defaultdict(list)
    for row in rows(folder, "train") + rows(folder, "dev"):
        windows[row["path"]].append(tokenizer.decode(row["token_ids"]))
    assert {path: "".join(parts) for path, parts in windows.items()} == texts
    assert [len(part) for part in windows["c.py"]] == [8, 8, 1]
    assert meta(folder)["flags"]["stride"] == 8
    message = convert("--source", tmp_path, "--whole_files", "--stride", 9, code=2).stderr
    assert "--stride 9: contradicts --whole_files" in message


def test_a_split_is_kept_when_files_are_added(convert, tmp_path):
    rng = random.Random(5)
    write_tree(tmp_path, {f"{i}.py": random_text(rng, 400) for i in range(10)})
    folder = convert("--source", tmp_path, "--dev_size", 0.3)
    before = {split: paths(folder, split) for split in ("train", "dev")}
    write_tree(tmp_path, {f"new{i}.py": random_text(rng, 400) for i in range(10)})
    copied = sorted(before["train"])[0]
    write_tree(tmp_path, {"copy.py": (tmp_path / copied).read_text()})
    folder = convert("--source", tmp_path, "--dev_size", 0.3, "--keep_split", folder.parent.name)
    after = {split: paths(folder, split) for split in ("train", "dev")}
    assert before["train"] | {"copy.py"} <= after["train"]
    assert before["dev"] < after["dev"]
    assert len(after["train"] | after["dev"]) == 21


def test_near_copies_of_dev_files_leave_train(convert, tmp_path):
    rng = random.Random(4)
    for i in range(10):
        text = random_text(rng, 400)
        write_tree(tmp_path, {f"a/{i}.py": text, f"b/{i}.py": text[:150] + "edited" + text[150:]})
    folder = convert("--source", tmp_path, "--whole_files", "--drop_clones", "--dev_size", 0.3)
    train, dev = ({int(Path(path).stem) for path in paths(folder, split)} for split in ("train", "dev"))
    assert train and dev and not train & dev
    (source,) = meta(folder)["sources"]
    assert set(source["skipped"].values()) == {"nearly a copy of files in dev"}
    assert len(source["skipped"]) + len(source["files"]) == 20
    assert meta(folder)["contamination"]["file"]["20"] < 0.01
    assert "--split_by segment" in convert("--drop_clones", "--split_by", "segment", code=2).stderr


def test_a_row_is_written_as_data_py_reads_it(convert, tmp_path):
    write_tree(tmp_path, {'odd "näme".py': "a = 1\n" * 20, "z.py": "b = 2\n" * 20})
    folder = convert("--source", tmp_path)
    for line in (folder / "train.jsonl").read_bytes().splitlines() + (folder / "dev.jsonl").read_bytes().splitlines():
        assert line == json.dumps(json.loads(line)).encode()
        assert list(json.loads(line)) == ["token_ids", "label", "path"]
    assert paths(folder, "train") | paths(folder, "dev") == {'odd "näme".py', "z.py"}


def test_rows_keep_the_order_of_the_files(convert):
    folder = convert("--source", STDLIB / "email", "--stride", 100)
    for split in ("train", "dev"):
        in_order = [row["path"] for row in rows(folder, split)]
        assert in_order == sorted(in_order)


def test_control_words_in_a_file_are_ordinary_text(convert, tmp_path):
    text = "a = '<|endoftext|> <pad> <python>'\n"
    write_tree(tmp_path, {"a.py": text, "b.py": text + "b\n"})
    folder = convert("--source", tmp_path, tokenizer="tiny")
    tokenizer = Tokenizer.from_file(str(ROOT / "pretrained" / "tiny" / "tokenizer.json"))
    for row in rows(folder, "train") + rows(folder, "dev"):
        assert tokenizer.token_to_id("<|endoftext|>") not in row["token_ids"]
    first = next(row for row in rows(folder, "train") + rows(folder, "dev") if row["path"] == "a.py")
    assert tokenizer.decode(first["token_ids"]) == text


# ---- splits


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Ten folders of six files of unequal length; in each folder but the last, one file is copied into the next."""
    rng = random.Random(5)
    files = {f"d{i}/f{j}.py": random_text(rng, rng.randrange(100, 900)) for i in range(10) for j in range(6)}
    files |= {f"d{i + 1}/copy.py": files[f"d{i}/f0.py"] for i in range(0, 8, 4)}
    return write_tree(tmp_path_factory.mktemp("tree"), files)


def test_split_by_file(convert, tree):
    folder = convert("--source", tree)
    train, dev = rows(folder, "train"), rows(folder, "dev")
    assert not paths(folder, "train") & paths(folder, "dev")
    assert 0.1 <= len(dev) / len(train + dev) < 0.13
    folders_of_dev = {Path(path).parent for path in paths(folder, "dev")}
    assert folders_of_dev & {Path(path).parent for path in paths(folder, "train")}, "whole folders went to dev"


def test_split_by_folder(convert, tree):
    folder = convert("--source", tree, "--split_by", "folder", "--dev_size", 0.2)
    train, dev = ({Path(path).parent for path in paths(folder, split)} for split in ("train", "dev"))
    assert train and dev and not train & dev
    assert ("d0" in {d.name for d in dev}) == ("d1" in {d.name for d in dev}), "exact copies in both splits"


def test_split_by_segment(convert, tree):
    folder = convert("--source", tree, "--split_by", "segment")
    train, dev = rows(folder, "train"), rows(folder, "dev")
    assert len(dev) == int(0.1 * len(train + dev))
    assert paths(folder, "dev") <= paths(folder, "train")
    shares = meta(folder)["contamination"]
    assert shares["segment"]["50"] > 0.9 > 0.2 > shares["file"]["50"]


def test_exact_copies_are_in_the_same_split(convert, tmp_path):
    rng = random.Random(3)
    for i in range(12):
        text = random_text(rng, 200)
        write_tree(tmp_path, {f"a/f{i}.py": text, f"b/f{(7 * i) % 12}.py": text})
    folder = convert("--source", tmp_path, "--dev_size", 0.4)
    text_of = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.py")}
    train, dev = ({text_of[path] for path in paths(folder, split)} for split in ("train", "dev"))
    assert len(train | dev) == 12 and dev and not train & dev
    assert meta(folder)["duplicate_files"] == 12


def test_seed_chooses_the_dev_files(convert, tree):
    chosen = {seed: paths(convert("--source", tree, "--seed", seed), "dev") for seed in (1, 2)}
    assert chosen[1] != chosen[2]


def test_one_large_file_does_not_flood_dev(convert, tmp_path):
    write_tree(tmp_path, {"large.py": "y = 2\n" * 9000} | {f"{i}.py": f"x{i} = 1\n" * 50 for i in range(20)})
    assert "large.py" not in paths(convert("--source", tmp_path), "dev")


def test_held_out_files_are_found_again_where_two_sources_have_the_same_paths(convert, byte_vocabulary, tmp_path):
    rng = random.Random(2)
    text = random_text(rng, 300)
    for source in ("one", "two"):
        write_tree(tmp_path / source, {f"{i}.py": random_text(rng, 300) for i in range(6)})
    write_tree(tmp_path, {"one/a.py": text, "two/b.py": text[:150] + "edited" + text[150:], "one/C.java": "c" * 50})
    flags = ("--dev_size", 0.4, "--whole_files", "--segment_len", 1000, "--drop_clones")
    write_tree(tmp_path, {"two/D.java": "d" * 50})
    folder = convert("--source", tmp_path / "one", tmp_path / "two", *flags)
    tokenizer = load_tokenizer(str(byte_vocabulary))
    for split, files in zip(("dev", "train"), split_sources(read_meta(folder), folder, tokenizer), strict=True):
        texts = {tokenizer.decode(row["token_ids"]) for row in rows(folder, split) if row["label"] == "Python"}
        assert {file.file.read_text() for file in files} == texts
        assert files


def test_a_dataset_of_java_alone_has_no_python_file_to_fill_in(project, convert, tmp_path):
    write_tree(tmp_path, {f"{name}.java": f"int {name};\n" * 9 for name in "abc"})
    name = convert("--source", tmp_path, tokenizer="tiny").parent.name
    assert "no Python file" in project.fails("evaluate.py", "--dataset_name", name, "--infill", 2, log_lines=True)


# ---- the same input gives the same bytes


def test_output_does_not_depend_on_the_number_of_workers(convert):
    arguments = ("--source", STDLIB / "email", STDLIB / "json", "--stride", 50)
    contents = []
    for workers in (1, 2, 2):
        folder = convert(*arguments, "--num_workers", workers, tokenizer="tiny")
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert sorted(contents[0]) == ["dev.jsonl", "meta.json", "train.jsonl"]
    assert contents[0] == contents[1] == contents[2]


def test_a_new_dataset_replaces_the_old_one_and_a_failed_run_does_not(convert, tree, tmp_path):
    folder = convert("--source", tree)
    before = (folder / "train.jsonl").read_bytes()
    (tmp_path / "only.py").write_text("x = 1\n" * 10)
    convert("--source", tmp_path, code=2)
    assert (folder / "train.jsonl").read_bytes() == before
    convert("--source", tree, "--stride", 20)
    assert (folder / "train.jsonl").read_bytes() != before
    assert sorted(path.name for path in folder.iterdir()) == ["dev.jsonl", "meta.json", "train.jsonl"]
    assert [path.name for path in folder.parent.iterdir()] == ["json"]


def test_two_at_once_on_one_dataset(project, convert, tree):
    folder = convert("--source", tree)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with lock(folder.with_name("convert.lock")):
        message = convert("--source", tree, "--stride", 20, code=2).stderr
    assert message.startswith(f"error: {folder.parent}: in use by process {os.getpid()} ")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_dataset_that_a_killed_convert_has_just_renamed_is_in_sight(project, convert, tree, byte_vocabulary):
    folder = convert("--source", tree)
    name = folder.parent.name
    folder.rename(folder.with_name("json.autocoder-old"))
    assert name in project.run("analysis.py", "data", "--dataset_name", name).stdout
    convert("--source", tree / "d0" / "f0.py", code=2)  # which is too little for a split
    assert (folder / "meta.json").is_file()


# ---- meta.json


def test_meta_tells_what_each_source_gave(convert, tmp_path):
    (tmp_path / "latin.py").write_bytes("größe = 1\n".encode("latin-1") * 5)
    write_tree(tmp_path, {"empty.py": "", "blank.py": " \n", "short.py": "x=1", "a.py": "y = 2\n" * 9})
    write_tree(tmp_path, {"b.py": "z = 3\n" * 9, "notes.txt": "no code", ".hidden/c.py": "c = 4\n" * 9})
    (source,) = meta(convert("--source", tmp_path))["sources"]
    assert source["files"] == {"a.py": 54, "b.py": 54}
    assert source["skipped"] == {
        "latin.py": "not UTF-8",
        "empty.py": "empty",
        "blank.py": "empty",
        "short.py": "shorter than the stride of 10 tokens",
    }


def test_meta_names_the_commit_of_a_git_source_only(convert, tree, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    shutil.copytree(tree, tmp_path / "clone")
    git = ["git", "-C", tmp_path / "clone", "-c", "user.name=n", "-c", "user.email=e@x.y"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    write_tree(tmp_path / "clone", {"ignored/a.py": "a = 1\n" * 9, "ignored/b.py": "b = 1\n" * 9})
    sources = [tmp_path / "clone" / "d0", tmp_path / "clone" / "ignored", tree]
    versions = [source["version"] for source in meta(convert("--source", *sources))["sources"]]
    assert versions == [f"git {head}", None, None]


def test_contamination_of_two_files_with_a_common_passage(convert, tmp_path):
    rng = random.Random(8)
    first, second, common = random_text(rng, 40), random_text(rng, 40), random_text(rng, 60)
    write_tree(tmp_path, {"a.py": "A" + first + common, "b.py": "B" + second + common})
    # each file has 101 bytes, hence 52 50-grams, of which 60 - 50 + 1 lie in the passage; 82 20-grams, of which 41
    result = meta(convert("--source", tmp_path, "--stride", 1, "--dev_size", 0.5))["contamination"]["file"]
    assert result == {"50": pytest.approx(11 / 52, abs=1e-6), "20": pytest.approx(41 / 82, abs=1e-6)}
    # windows of 30 tokens 60 apart, the last shorter than the file: 20-grams at 0 to 10 only, no 50-gram anywhere
    result = meta(convert("--source", tmp_path, "--stride", 60, "--segment_len", 30))["contamination"]["file"]
    assert result == {"50": None, "20": 0.0}


def test_contamination_agrees_with_a_plain_set_of_ngrams(convert):
    stride = 30
    folder = convert("--source", STDLIB / "email", "--stride", stride, "--segment_len", 64, "--dev_size", 0.3)
    for n in (20, 50):
        grams = {}
        for split in ("train", "dev"):
            at, seen = {}, Counter()
            for row in rows(folder, split):
                start = stride * seen[row["path"]]
                seen[row["path"]] += 1
                ids = row["token_ids"]
                at |= {(row["path"], start + i): tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
            grams[split] = list(at.values())
        train = set(grams["train"])
        share = sum(gram in train for gram in grams["dev"]) / len(grams["dev"])
        assert 0 < share < 1
        assert meta(folder)["contamination"]["file"][str(n)] == pytest.approx(share, abs=1e-6)


def test_contamination_is_measured_for_both_splits_whichever_is_made(convert):
    arguments = ("--source", STDLIB / "email", STDLIB / "json", "--stride", 50)
    by_file, by_segment, by_folder = (
        meta(convert(*arguments, "--split_by", split_by))["contamination"] for split_by in ("file", "segment", "folder")
    )
    assert by_file == by_segment == {name: by_folder[name] for name in ("file", "segment")}
    assert sorted(by_folder) == ["file", "folder", "segment"]


def test_stdlib_is_read_without_its_tests(convert):
    folder = convert("--source", "stdlib", "--stride", 254, "--split_by", "folder", tokenizer="tiny")
    (source,) = meta(folder)["sources"]
    assert {"argparse.py", "json/decoder.py"} <= set(source["files"])
    assert not [path for path in source["files"] if {"test", "tests", "idlelib", "site-packages"} & {*path.split("/")}]
    assert source["version"] == f"Python {sys.version.split()[0]}"


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--source", "{empty}"], "no .py or .java file in {empty}; name another folder"),
        (["--source", "{empty}/nowhere"], "{empty}/nowhere: no such file or folder"),
        (["--source", "{empty}/loop.py"], "{empty}/loop.py: no such file or folder"),
        (["--source", "{empty}/pipe.py"], "no file can be used (not a regular file)"),
        (["--source", "{one}"], "Python: a split would be empty"),
        (["--source", "{one}", "--split_by", "segment"], "Python: dev would be empty, of 6 windows"),
        (["--source", "{one}", "--stride", "1000"], "no file can be used (shorter than the stride of 1000 tokens)"),
        (["--source", "{one}", "--tokenizer", "{empty}"], "{empty}: has neither tokenizer.json"),
        (["--source", "{one}", "--tokenizer", "{broken}"], "{broken}: cannot be read as a tokenizer"),
        (["--segment_len", "0"], "--segment_len 0"),
        (["--stride", "0"], "--stride 0"),
        (["--stride", "ten"], "--stride"),
        (["--dev_size", "0"], "--dev_size 0:"),
        (["--dev_size", "1"], "--dev_size 1:"),
        (["--dev_size", "nan"], "--dev_size nan"),
        (["--num_workers", "-1"], "--num_workers -1"),
        (["--dataset_name", "../escape"], "--dataset_name ../escape"),
        (["--split_by", "line"], "--split_by"),
        (["--sources", "stdlib"], "--sources"),
    ],
)
def test_a_mistake_gets_one_line(convert, tmp_path, arguments, expected):
    folders = {name: tmp_path / name for name in ("empty", "one", "broken")}
    for folder in folders.values():
        folder.mkdir()
    (folders["one"] / "one.py").write_text("x = 1\n" * 10)
    if arguments[1].startswith("{empty}/"):
        (folders["empty"] / "loop.py").symlink_to(folders["empty"] / "loop.py")
        os.mkfifo(folders["empty"] / "pipe.py")
    (folders["broken"] / "tokenizer.json").write_text('{"model": 1')
    done = convert(*(argument.format(**folders) for argument in arguments), code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert expected.format(**folders) in done.stderr


def test_too_small_a_vocabulary_gets_one_line(project, tmp_path):
    message = project.fails("dataset/vocabulary.py", "--vocab_size", 200, "--output", tmp_path / "v")
    assert message.startswith("error: --vocab_size 200")
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("script", ["convert.py", "vocabulary.py"])
def test_help_needs_neither_torch_nor_numpy(script):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '-h']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('loaded:', {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "dataset" / script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--source" in done.stdout and done.stdout.endswith("loaded: set()\n")


def test_converting_needs_no_torch(convert, tree, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    convert("--source", tree, env=os.environ | {"PYTHONPATH": str(tmp_path)})


# ---- vocabulary


def test_vocabulary_is_repeatable_and_loses_no_byte(project, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "config.json").write_text("{}")
    files = []
    for _ in range(2):
        command = ("dataset/vocabulary.py", "--source", STDLIB / "email", "--vocab_size", 600)
        project.run(*command, "--output", tmp_path / "v")
        files.append({file.name: file.read_bytes() for file in (tmp_path / "v").iterdir()})
    assert files[0] == files[1]
    assert files[0]["config.json"] == b"{}"
    tokenizer = Tokenizer.from_file(str(tmp_path / "v" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 600
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000, 7)]))
    for text in ("", "  \t\t\r\n\x00\x0c x", "naïve 变量 = '\U0001f600\u200d\ufeff'", every_character):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("    def __init__(self):\n").ids) < 15


def test_vocabulary_loads_in_transformers(byte_vocabulary):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(byte_vocabulary)
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.pad_token is None
    assert len(tokenizer) == 257
    assert tokenizer.decode(tokenizer("def f(x): return 'é'")["input_ids"]) == "def f(x): return 'é'"


def test_embedded_vocabulary_leaves_room_for_the_control_words():
    tokenizer = Tokenizer.from_file(str(ROOT / "pretrained" / "tiny" / "tokenizer.json"))
    assert tokenizer.get_vocab_size(with_added_tokens=False) == 8189
