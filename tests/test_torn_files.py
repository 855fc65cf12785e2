"""Files that were torn, mixed up or edited, through the commands that read them: each run works, or ends in one line.

FUZZ_SEEDS=100 python -m pytest tests/test_torn_files.py     (a hundred of each kind instead of eight)
"""

import copy
import json
import os
import random
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from torch.utils.tensorboard import SummaryWriter

import analysis
import interact
from common import files
from common.command import InputError
from completion import export_gguf
from data import SrcCodeDataset
from dataset import convert
from model import GPTSingleHead

SEEDS = range(int(os.environ.get("FUZZ_SEEDS", "8")))
STRANGE = [
    None,
    True,
    -5,
    0,
    2.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "abc",
    [],
    {},
    [1, 2],
    {"a": 1},
    "\0",
    "\ud800",
]
CODE = 'import os\n\n\ndef f(größe: int) -> str:\n    """漢字"""\n    return f"{größe:>10}"\n' * 8


def torn(rng: random.Random, content: bytes) -> bytes:
    """A few pieces cut off, left out, exchanged, repeated, or written over."""
    for _ in range(rng.randint(1, 3)):
        a, b, c = sorted(rng.randrange(len(content) + 1) for _ in range(3))
        noise = rng.choice([rng.randbytes(3), b"\0", b"\xff", b'"', b"}", b"[" * 50_000, b"9" * 5_000, b"\n\n", b"\r"])
        content = rng.choice(
            [
                content[:a],
                content[:a] + content[b:],
                content[:a] + content[b:c] + content[a:b] + content[c:],
                content[:b] + content[a:b] * 3 + content[b:],
                content[:a] + noise + content[a:],
                content[:a] + noise + content[a + len(noise) :],
            ]
        )
    return content


def edited(rng: random.Random, content: bytes) -> bytes:
    """JSON with a few values replaced by strange ones, left out or under another name; now and then torn too."""
    value = copy.deepcopy(json.loads(content))
    for _ in range(rng.randint(1, 3)):
        parent, key = None, None
        here = value
        while isinstance(here, dict | list) and here and (parent is None or rng.random() < 0.8):
            parent, key = here, rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
            here = parent[key]
        action = rng.randrange(4)
        if parent is None or rng.random() < 0.05:
            value = copy.deepcopy(rng.choice(STRANGE))
        elif action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent["other" + str(key)] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(STRANGE))
    content = json.dumps(value, indent=rng.choice([None, 2])).encode()
    return torn(rng, content) if rng.random() < 0.2 else content


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A project's folder with a converted dataset, sources, a vocabulary and a run."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "sources").mkdir()
    for name in ("a", "b", "c"):
        (folder / "sources" / f"{name}.py").write_text(f"{name} = 1\n" * 20 + CODE, encoding="utf-8")
    (folder / "vocabulary").mkdir()
    tokenizer = ROOT / "pretrained" / "tiny" / "tokenizer.json"
    (folder / "vocabulary" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    with SummaryWriter(str(folder / "run" / "tensorboard")) as writer:
        for step in range(20):
            writer.add_scalar("loss_dev", 2.5, step)
    (folder / "run" / "hyperparams.json").write_text(json.dumps({"lr": 1e-4, "model_select": "tiny", "dev_windows": 3}))
    return folder


@pytest.fixture
def command(place, monkeypatch):
    """Run a command's main in this process, below `place`."""

    def command(main, *arguments):
        for module in (files, convert, analysis):
            monkeypatch.setattr(module, "ROOT", place)
        monkeypatch.setattr(sys, "argv", ["command.py", *map(str, arguments)])
        main()

    return command


def convert_with(command, place, tokenizer="tiny"):
    command(convert.main, "--source", place / "sources", "--tokenizer", tokenizer, "--dataset_name", "own")
    meta = json.loads((place / "dataset" / "own" / "json" / "meta.json").read_text())
    assert meta["languages"]["Python"]["train"]["windows"] > 0


def draw(command, place):
    chart = place / "out" / "dev_loss.png"
    chart.unlink(missing_ok=True)
    command(analysis.main, "runs", place / "run", "--output", place / "out")
    assert chart.stat().st_size > 1000


def describe(command, place):
    command(analysis.main, "data", "--dataset_name", "own", "--output", place / "out")


def load(command, place):
    GPTSingleHead.load(place / "model")


def export(command, place):
    export_gguf.main(["--model_path", str(place / "model"), "--output", str(place / "model.gguf")])


def complete(command, place):
    command(interact.main, "--model_path", place / "model", "--prompt", "x", "--max_length", 2)


KINDS = {  # which file, what is done to it, the command that reads it
    "source": ("sources/a.py", torn, convert_with),
    "vocabulary": (
        "vocabulary/tokenizer.json",
        edited,
        lambda command, place: convert_with(command, place, place / "vocabulary"),
    ),
    "events": ("run/tensorboard/events*", torn, draw),
    "settings": ("run/hyperparams.json", edited, draw),
    "meta": ("dataset/own/json/meta.json", edited, describe),
    "rows": ("dataset/own/json/train.jsonl", torn, None),
    "meta of rows": ("dataset/own/json/meta.json", edited, None),
    "model": ("model/config.json", edited, load),
    "model's lengths": ("model/gpt_sh_config.json", edited, load),
    "exported tokenizer": ("model/tokenizer.json", edited, export),
    "exported settings": ("model/config.json", edited, export),
    "completing tokenizer": ("model/tokenizer.json", edited, complete),
    "completing settings": ("model/tokenizer_config.json", edited, complete),
    "model's tokenizer": ("model/tokenizer_config.json", edited, load),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_or_edited_file_works_or_ends_in_one_line(command, place, model, kind, seed):
    pattern, change, run = KINDS[kind]
    if not (place / "dataset").exists():
        convert_with(command, place)
        model.save(place / "model")
    (file,) = place.glob(pattern)
    content = file.read_bytes()
    file.write_bytes(change(random.Random(f"{kind} {seed}"), content))
    try:
        if run is None:
            assert len(SrcCodeDataset(place / "dataset" / "own" / "json" / "train.jsonl", model)) > 0
        else:
            run(command, place)
    except InputError as error:
        assert "\n" not in str(error)
        assert Path(str(error).split(":")[0]).is_absolute() or "no file can be used" in str(error)
    finally:
        file.write_bytes(content)
