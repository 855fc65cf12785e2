"""The first hour on a machine with a GPU: four stages of at most ten minutes each, without network, into one folder.

python -m benchmarks.gpu_day right out     (tests; losses by precision and compilation; killed and restarted; text)
python -m benchmarks.gpu_day fast out      (step times beside the alternatives; kernels, waits, memory, evaluation)
python -m benchmarks.gpu_day report out    (one epoch at the lab report's settings, evaluations and saves included)
python -m benchmarks.gpu_day model out     (the shape of the embedded model, trained from random weights and measured)

Needs the packages of requirements.txt except gguf, xllamacpp, prompt_toolkit and wandb. Each stage writes <stage>.json,
the logs of its commands, and charts. If a command fails, this is noted there, and the stage goes on. --small tries a
stage on a CPU in a few minutes.
"""

import contextlib
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.turns import describe_machine
from common.command import Flags, flag, output_folder, parse_flags, run_command
from common.files import ROOT

STAGE_SECONDS = 570
TESTS = ("common/test_loss.py", "training/test_gpu.py", "test_trainer.py", "test_evaluate.py")
PROMPTS = ("def bubble_sort(items):\n", "import os\n\n\ndef read_lines(path):\n", "class Stack:\n    def __init__(self")
SMALL_RUN = ("--max_steps", 6, "--evaluation_steps", 3, "--dev_windows", 16)


@dataclass
class GpuDayFlags(Flags):
    stage: str = flag("right", "which of the four", choices=("right", "fast", "report", "model"), positional=True)
    output: str = flag("gpu_day", "folder for results, logs and charts", type=output_folder, positional=True)
    small: bool = flag(False, "few steps and a small dataset, to try the stage on a CPU")


def main() -> None:
    flags = parse_flags(GpuDayFlags, __doc__)
    stage = Stage(flags.stage, Path(flags.output).resolve(), flags.small)
    {"right": right, "fast": fast, "report": report, "model": model}[flags.stage](stage)
    print(f"{flags.stage}: {time.monotonic() - stage.began:.0f} s, results in {stage.file}")


class Stage:
    """Runs commands within the stage's time, and writes down what they find."""

    def __init__(self, name: str, folder: Path, small: bool):
        from benchmarks.contenders import shape_folder

        self.name, self.folder, self.small, self.began = name, folder, small, time.monotonic()
        self.file = folder / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.results: dict = {}
        machine = describe_machine()
        self.note("machine", machine)
        self.on_gpu = machine["gpu_memory_gib"] is not None
        self.shape = shape_folder("tiny" if small else "distilgpt2", "tiny", folder / "shape")

    def note(self, name: str, value: object) -> None:
        self.results[name] = value
        self.file.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(value)[:300], flush=True)

    def attempt(self, name: str, work: Callable[[], object]) -> None:
        """Note what `work` returns, or how it fails."""
        try:
            self.note(name, work())
        except Exception as error:
            self.note(name, f"failed: {type(error).__name__}: {error}")

    def run(self, name: str, *command: object, at_most_s: float = STAGE_SECONDS, **environment: str) -> str:
        """Run a Python command, note its seconds and exit code, and return its standard output."""
        log, began = self.folder / f"{self.name}_{name}.log", time.monotonic()
        left = None if self.small else max(5, min(at_most_s, STAGE_SECONDS - (began - self.began)))
        output, code = "", None
        with log.open("w", encoding="utf-8") as file:
            try:
                done = subprocess.run(
                    [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | environment, timeout=left,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True,
                )  # fmt: skip
                output, code = done.stdout, done.returncode
            except subprocess.TimeoutExpired as error:
                output, code = (error.stdout or b"").decode(errors="replace"), "out of time"
            file.write(output)
        self.note(f"{name}: seconds, exit code", [round(time.monotonic() - began, 1), code])
        return output

    def train(self, name: str, *flags: object, at_most_s: float = 60) -> Path:
        """Train from random weights, note the losses, and return the run's folder."""
        folder = ROOT / "model" / f"gpu_day_{name}"
        self.run(name, "train.py", "--from_scratch", "--run_name", folder.name, *flags, at_most_s=at_most_s)
        self.attempt(f"{name}: losses", partial(losses, folder))
        return folder

    def draw(self, *runs: Path) -> None:
        self.run("charts", "analysis.py", "runs", *runs, "--output", self.folder / self.name, at_most_s=30)

    def dataset(self, tokenizer: Path | str, stride: int) -> str:
        """Convert Python's standard library, or a part of it, and return the dataset's name."""
        source, stride = (Path(json.__file__).parent, 60) if self.small else ("stdlib", stride)
        name = f"gpu_day_{Path(tokenizer).name}_{stride}"
        if not (ROOT / "dataset" / name / "json" / "meta.json").is_file():
            flags = ("--tokenizer", tokenizer, "--dataset_name", name, "--stride", stride)
            self.run("convert", "dataset/convert.py", "--source", source, *flags)
        return name


def progress(run: Path) -> dict:
    return json.loads((run / "last" / "state.json").read_text(encoding="utf-8"))["progress"]["run"]


def losses(run: Path) -> dict:
    state = progress(run)
    dev = json.loads((run / "ck_report.json").read_text(encoding="utf-8"))["eval_scores_on_dev"]["loss"]
    return {"train": state["epoch_nats"] / state["epoch_targets"], "dev": dev, "skipped": state["skipped_steps"]}


def right(stage: Stage) -> None:
    """Whether what is computed is right: in each precision, compiled, and after a kill."""
    tests = [f"tests/{name}" for name in (TESTS[:1] if stage.small else TESTS)]
    stage.run("tests", "-m", "pytest", "-q", *tests, at_most_s=150, AUTOCODER_TEST_GPU="1")
    common = ("--model_select", stage.shape, "--dataset_name", stage.dataset(stage.shape, 100), "--lr", 1e-4,
              "--scheduler", "constantlr", "--dev_windows", 16 if stage.small else 512)  # fmt: skip
    precisions = ("fp32", "bf16", "fp16") if stage.on_gpu else ("fp32", "bf16")
    steps, runs = 6 if stage.small else 200, []
    for precision in precisions:
        for compiled in ("off", "on") if stage.on_gpu else ("off",):
            flags = ("--overwrite", "--precision", precision, "--compile", compiled)
            length = ("--max_steps", steps, "--evaluation_steps", steps)
            runs.append(stage.train(f"{precision}_{compiled}", *common, *flags, *length))
    stage.draw(*runs)

    steps = 8 if stage.small else 60
    exact = (*common, "--deterministic", "--max_steps", steps, "--evaluation_steps", steps // 4, "--save_steps", 1)
    whole = stage.train("whole", *exact, "--overwrite")
    killed = whole.with_name("gpu_day_killed")
    stage.attempt("killed after step", lambda: kill_at_step(steps // 4, killed, exact))
    stage.train("killed", *exact, "--restore_training")
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = (whole / "last" / name, killed / "last" / name)
        stage.attempt(f"{name}: same bits after a kill", partial(filecmp.cmp, *files, shallow=False))

    texts = {
        precision: [
            stage.run(
                f"text_{precision}_{i}", "interact.py", "--model_path", "tiny", "--precision", precision,
                "--temperature", 0, "--max_new_tokens", 48, "--prompt", prompt, at_most_s=40,
            )
            for i, prompt in enumerate(PROMPTS[:1] if stage.small else PROMPTS)
        ]
        for precision in precisions
    }  # fmt: skip
    stage.note("texts that are float32's", {name: sum(map(str.__eq__, texts["fp32"], texts[name])) for name in texts})


def kill_at_step(step: int, run: Path, flags: tuple) -> int:
    """Start a training and kill it when it has saved that step. Returns the last step that it saved."""
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "train.py", "--from_scratch", "--run_name", run.name, *map(str, flags)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved, deadline = 0, time.monotonic() + 90
    while saved < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            saved = progress(run)["step"]
    process.kill()
    process.wait()
    return saved


def fast(stage: Stage) -> None:
    """How fast training and evaluation are, and where a step's time goes."""
    quick = ("--quick",) if stage.small else ("--repeats", 3)
    output = ("--output", stage.folder / "benchmarks.json", "--chart", stage.folder / "benchmarks.png")
    stage.run("benchmarks", "-m", "benchmarks", "--model", stage.shape, *quick, *output, at_most_s=330)
    for batch in (4, 8, 64) if stage.on_gpu else (2,):
        for compiled in (False, True) if stage.on_gpu else (False,):
            name = f"step, batch {batch}" + ", compiled" * compiled
            stage.attempt(name, partial(probe_step, stage, batch, compiled))
    stage.attempt("evaluation and save", lambda: probe_evaluation(stage.shape, 15_422 if stage.on_gpu else 16))


def probe_step(stage: Stage, batch: int, compiled: bool) -> dict:
    """Milliseconds, kernels and memory of a step, and the lines that wait for the GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.contenders import new_model, ours
    from benchmarks.speed import reset_peak, seconds_of
    from common.devices import choose_device, peak_memory

    device = choose_device()
    torch.compiler.reset()
    model = new_model(stage.shape, device)
    step, times = ours(model, batch, compiled), 20 if stage.on_gpu else 1
    for _ in range(3):
        step()
    reset_peak(device)
    milliseconds = statistics.median(seconds_of(step, device, times) / times * 1e3 for _ in range(5))
    found = {"ms": milliseconds, "peak_gib": round(peak_memory(device) / 2**30, 2)}
    found["tflops"] = batch * model.max_seq_length * model.flops_per_token() / milliseconds / 1e9
    if stage.on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        found["waits"] = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchron" in str(w.message))
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * stage.on_gpu]) as run:
        seconds_of(step, device, 5)
    kernels = [event for event in run.events() if str(event.device_type).endswith("CUDA")]
    found |= {"kernels": len(kernels) / 5, "busy_ms": sum(event.device_time_total for event in kernels) / 5e3}
    order = f"self_{'device' if stage.on_gpu else 'cpu'}_time_total"
    table = run.key_averages().table(sort_by=order, row_limit=60)
    (stage.folder / f"profile_{batch}_{compiled}.txt").write_text(table, encoding="utf-8")
    return found


def probe_evaluation(shape: Path, windows: int) -> dict:
    """Seconds of an evaluation and of a save, three times each."""
    import torch

    from benchmarks.contenders import RandomRows, new_model, ours
    from benchmarks.speed import seconds_of
    from common.devices import choose_device
    from evaluation.loss import SingleCLMEvaluator
    from training.checkpoint import save_checkpoint

    device = choose_device()
    model = new_model(shape, device)
    ours(model, 2)()  # gives the model our kernels
    evaluator = SingleCLMEvaluator(RandomRows(windows, model))
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    evaluation = [seconds_of(lambda: evaluator(model), device) for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        save = [seconds_of(lambda: save_checkpoint(last, model, optimizer, scaler, {}), device) for _ in range(3)]
    return {"windows": windows, "evaluation_s": evaluation, "save_without_moments_s": save}


def report(stage: Stage) -> None:
    """One epoch at the report's settings, from random weights. The goal is three minutes."""
    common = ("--model_select", stage.shape, "--dataset_name", stage.dataset(stage.shape, 10), "--overwrite")
    short = SMALL_RUN if stage.small else ()
    recipes = ("report-3", "report-1")
    stage.draw(*(stage.train(name, "--recipe", name, *common, *short, at_most_s=270) for name in recipes))


def model(stage: Stage) -> None:
    """What a model of the embedded model's shape learns in a few minutes, left to right and infilling."""
    data = stage.dataset("tiny", 100)
    full = ("--max_steps", 6000, "--evaluation_steps", 500, "--per_gpu_train_batch_size", 64)
    run = stage.train(
        "model", "--model_select", "tiny", "--dataset_name", data, "--overwrite", "--lr", 1e-3, "--scheduler",
        "warmupcosine", "--warmup_ratio", 0.05, "--weight_decay", 0.1, "--fim_rate", 0.5,
        *(SMALL_RUN if stage.small else full), at_most_s=420,
    )  # fmt: skip
    few = ("--dev_windows", 16) if stage.small else ()
    for name, path in (("tiny", "tiny"), (run.name, run)):
        output = ("--output", stage.folder / f"evaluate_{name}.json")
        flags = ("--model_path", path, "--dataset_name", data, *output, *few)
        stage.run(f"evaluate_{name}", "evaluate.py", *flags, at_most_s=60)
    stage.draw(run)


if __name__ == "__main__":
    run_command(main)
