"""A copy of the project to run its commands in, with a small model and a small dataset of real source code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
if os.environ.get("AUTOCODER_TEST_GPU") != "1":  # most results are those of a CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOMS = sorted(
    str(file.parent.relative_to(ROOT))
    for depth in ("*", "*/*")
    for file in ROOT.glob(f"{depth}/__init__.py")
    if not file.relative_to(ROOT).parts[0].startswith(".")
)
GPT2_VOCABULARY = ROOT.parent / "shared" / "gpt2"


class Project:
    """A folder with the project's code, in which commands run and write without touching the real one."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(
        self, *arguments: object, check: bool = True, timeout: float = 180, **options
    ) -> subprocess.CompletedProcess:
        arguments = [argument if isinstance(argument, bytes) else str(argument) for argument in arguments]
        if Path(arguments[0]).suffix == ".py" and options.keys() <= {"stdin"}:
            done = run_forked(arguments, self.folder, timeout)
        else:  # what is set before Python starts needs a Python of its own
            command = [sys.executable, *arguments]
            done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=timeout, **options)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def fails(self, *arguments: object, log_lines: bool = False, **options) -> str:
        """The one line that a command with a bad input prints last; checks the exit code and that there is no more.

        Args:
            log_lines: whether a log may come before it, as of a run that had begun.
        """
        done = self.run(*arguments, check=False, **options)
        assert done.returncode == 2, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 or log_lines, done.stderr
        assert "Traceback" not in done.stderr
        assert lines[-1].startswith("error: ")
        return lines[-1]


def scalars(run_folder):
    """name -> {step: value} of a run's TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    for name, curve in curves.items():
        assert len(dict(curve)) == len(curve), f"{name} has a step twice"
    return {name: dict(curve) for name, curve in curves.items()}


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    for file in [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).glob("*.py"))]:
        (folder / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.relative_to(ROOT))
    shutil.copytree(ROOT / "pretrained", folder / "pretrained")
    sources = folder / "dataset" / "Python"
    sources.mkdir()
    for name in ("bisect", "heapq", "textwrap", "shlex", "string", "queue", "sched", "fnmatch", "keyword", "colorsys"):
        shutil.copy(Path(os.__file__).parent / f"{name}.py", sources)
    project = Project(folder)
    project.run("dataset/convert.py", "--tokenizer", "pretrained/tiny", "--stride", 50, "--segment_len", 62)
    return project


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A folder with a 2-layer GPT-2 configuration without dropout and the embedded vocabulary, less its markers."""
    folder = tmp_path_factory.mktemp("base")
    names = ("tokenizer.json", "tokenizer_config.json", "config.json")
    tokenizer, settings, config = (json.loads((ROOT / "pretrained" / "tiny" / name).read_text()) for name in names)
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if "fim" not in token["content"]]
    settings["extra_special_tokens"] = [word for word in settings["extra_special_tokens"] if "fim" not in word]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config |= {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 128, "vocab_size": 8192}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def with_dropout(project, base) -> Path:
    """A base model whose steps draw random numbers, which a restart has to get right."""
    folder = project.folder / "with_dropout"
    folder.mkdir()
    for file in base.iterdir():
        folder.joinpath(file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"resid_pdrop": 0.1, "embd_pdrop": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def without_markers(base, tmp_path_factory) -> Path:
    """A random model that knows no marker words."""
    from common.source_code import SPECIAL_WORDS
    from model import GPTSingleHead

    folder = tmp_path_factory.mktemp("without_markers")
    GPTSingleHead(str(base), special_words_to_add=SPECIAL_WORDS, from_scratch=True).save(folder)
    return folder


@pytest.fixture
def model(base):
    import torch

    from common.source_code import SPECIAL_WORDS
    from model import GPTSingleHead

    torch.manual_seed(0)
    return GPTSingleHead(str(base), max_seq_length=64, special_words_to_add=SPECIAL_WORDS, from_scratch=True)


@pytest.fixture(scope="session")
def dataset_folder(project) -> Path:
    return project.folder / "dataset" / "source_code" / "json"
