"""The first hour on a machine with a GPU: four stages of at most ten minutes, without network, into one folder.

python -m benchmarks.gpu_day right out     (tests; losses by precision and compilation; killed and restarted; text)
python -m benchmarks.gpu_day fast out      (step times beside the alternatives; kernels, waits, memory, evaluation)
python -m benchmarks.gpu_day report out    (a one-epoch run at the lab report's settings, evaluation and saves included)
python -m benchmarks.gpu_day model out     (the embedded model's shape trained from nothing, and measured)

Needs the packages of requirements.txt except gguf, xllamacpp, prompt_toolkit and wandb. Each stage writes <stage>.json,
the logs of its commands, and charts; a command that fails is noted there, and the next one follows. --small tries a
stage on a CPU in a few minutes.
"""

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.command import Flags, flag, output_folder, parse_flags, run_command
from common.files import ROOT

STAGE_SECONDS = 570
PROMPTS = ("def bubble_sort(items):\n", "import os\n\n\ndef read_lines(path):\n", "class Stack:\n    def __init__(self")


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
    """Runs commands within the stage's time, and keeps what they say and what is found."""

    def __init__(self, name: str, folder: Path, small: bool):
        self.name, self.folder, self.small, self.began = name, folder, small, time.monotonic()
        self.file = folder / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.results: dict = {}
        self.note("machine", machine())

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

    def run(self, name: str, *command: object, most_s: float = STAGE_SECONDS, **environment: str) -> str:
        """The standard output of a Python command; its seconds and exit code are noted."""
        log, began = self.folder / f"{self.name}_{name}.log", time.monotonic()
        left = max(5, min(most_s, STAGE_SECONDS - (began - self.began)))
        with log.open("w", encoding="utf-8") as errors:
            try:
                done = subprocess.run(
                    [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | environment, timeout=left,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                )  # fmt: skip
                output, code = done.stdout, done.returncode
            except subprocess.TimeoutExpired as error:
                output, code = (error.stdout or b"").decode(errors="replace"), "out of time"
        with log.open("a", encoding="utf-8") as file:
            file.write(output)
        self.note(f"{name}: seconds, exit code", [round(time.monotonic() - began, 1), code])
        return output

    def dataset(self, tokenizer: Path | str, stride: int) -> str:
        """The name of a dataset of Python's standard library."""
        name = f"gpu_day_{Path(tokenizer).name}_{stride}"
        if not (ROOT / "dataset" / name / "json" / "meta.json").is_file():
            source = Path(json.__file__).parent if self.small else "stdlib"
            stride = 60 if self.small else stride
            arguments = ("--tokenizer", tokenizer, "--dataset_name", name, "--stride", stride)
            self.run("convert", "dataset/convert.py", "--source", source, *arguments)
        return name

    def shape(self) -> Path:
        """distilgpt2's shape with the embedded model's vocabulary; the embedded model's own where --small."""
        from benchmarks.contenders import shape_folder

        return shape_folder("tiny" if self.small else "distilgpt2", "tiny", self.folder / "shape")


def machine() -> dict:
    import torch
    import transformers

    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }


def right(stage: Stage) -> None:
    tests = (
        "tests/common/test_loss.py",
        "tests/training/test_gpu.py",
        "tests/test_trainer.py",
        "tests/test_evaluate.py",
    )
    tests = tests[:1] if stage.small else tests
    stage.run("tests", "-m", "pytest", "-q", *tests, most_s=150, AUTOCODER_TEST_GPU="1")
    data, shape, on_gpu = stage.dataset(stage.shape(), 100), stage.shape(), stage.results["machine"]["memory_gib"]
    steps = 6 if stage.small else 200
    common = ["train.py", "--dataset_name", data, "--model_select", shape, "--from_scratch", "--overwrite"]
    common += ["--lr", 1e-4, "--scheduler", "constantlr", "--dev_windows", 16 if stage.small else 512]
    runs = []
    for precision in ("fp32", "bf16", *["fp16"] * bool(on_gpu)):
        for compiled in ("off", *["on"] * bool(on_gpu)):
            name = f"gpu_day_{precision}_{compiled}"
            flags = ("--precision", precision, "--compile", compiled, "--max_steps", steps, "--run_name", name)
            stage.run(name, *common, *flags, "--evaluation_steps", steps, most_s=60)
            stage.attempt(f"{name}: losses", lambda name=name: losses(name))
            runs.append(ROOT / "model" / name)
    stage.run("charts", "analysis.py", "runs", *runs, "--output", stage.folder / "right", most_s=30)
    steps = 8 if stage.small else 60
    exact = [*common, "--deterministic", "--max_steps", steps, "--evaluation_steps", steps // 4, "--save_steps", 1]
    stage.run("whole", *exact, "--run_name", "gpu_day_whole", most_s=60)
    stage.attempt("killed after step", lambda: kill_after_a_save(exact, "gpu_day_killed", steps // 4))
    again = [argument for argument in exact if argument != "--overwrite"]
    stage.run("restarted", *again, "--restore_training", "--run_name", "gpu_day_killed", most_s=60)
    for file in ("model", "optimizer"):
        stage.attempt(f"{file}: same bits after a kill", lambda file=file: same_bits(file))
    precisions = ("fp32", "bf16", *["fp16"] * bool(on_gpu))
    texts = {
        precision: [
            stage.run(
                f"text_{precision}_{i}", "interact.py", "--model_path", "tiny", "--precision", precision,
                "--temperature", 0, "--max_new_tokens", 48, "--prompt", prompt, most_s=40,
            )
            for i, prompt in enumerate(PROMPTS[: 1 if stage.small else 3])
        ]
        for precision in precisions
    }  # fmt: skip
    stage.note("texts that are float32's", {name: sum(map(str.__eq__, texts["fp32"], texts[name])) for name in texts})


def losses(run_name: str) -> dict:
    folder = ROOT / "model" / run_name
    state = json.loads((folder / "last" / "state.json").read_text(encoding="utf-8"))["progress"]["run"]
    dev = json.loads((folder / "ck_report.json").read_text(encoding="utf-8"))["eval_scores_on_dev"]["loss"]
    return {"train": state["epoch_nats"] / state["epoch_targets"], "dev": dev, "skipped": state["skipped_steps"]}


def kill_after_a_save(command: list, run_name: str, steps: int) -> int:
    """Start a run and kill it when it has saved that many steps; returns how many."""
    state, done = ROOT / "model" / run_name / "last" / "state.json", 0
    arguments = [sys.executable, *map(str, command), "--run_name", run_name]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    began = time.time()
    while done < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        if state.is_file() and state.stat().st_mtime > began:
            text = state.read_text(encoding="utf-8")
            done = json.loads(text)["progress"]["run"]["step"] if text.endswith("}\n") else done
    process.send_signal(signal.SIGKILL)
    process.wait()
    return done


def same_bits(file: str) -> bool:
    files = [ROOT / "model" / name / "last" / f"{file}.safetensors" for name in ("gpu_day_whole", "gpu_day_killed")]
    first, second = (hashlib.sha256(each.read_bytes()).hexdigest() for each in files)
    return first == second


def fast(stage: Stage) -> None:
    shape = stage.shape()
    output = ("--output", stage.folder / "benchmarks.json", "--chart", stage.folder / "benchmarks.png")
    quick = ("--quick",) if stage.small else ("--repeats", 3)
    stage.run("benchmarks", "-m", "benchmarks", "--model", shape, *quick, *output, most_s=330)
    on_gpu = stage.results["machine"]["memory_gib"]
    for batch in (4, 8, 64) if on_gpu else (2,):
        for compiled in (False, True) if on_gpu else (False,):
            name = f"step, batch {batch}{', compiled' * compiled}"
            stage.attempt(name, lambda b=batch, c=compiled: probe_step(stage, shape, b, c))
    stage.attempt("evaluation and save", lambda: probe_evaluation(shape, 15_422 if on_gpu else 16))


def probe_step(stage: Stage, shape: Path, batch: int, compiled: bool) -> dict:
    """Where a step's time goes: milliseconds, kernels, launches, memory, and the lines that wait for the GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.contenders import new_model, ours
    from benchmarks.speed import reset_peak, seconds_of
    from common.devices import choose_device, peak_memory

    device = choose_device()
    on_gpu = device.type == "cuda"
    torch.compiler.reset()
    model = new_model(shape, device)
    step, times = ours(model, batch, compiled), 20 if on_gpu else 1
    for _ in range(3):
        step()
    reset_peak(device)
    milliseconds = [seconds_of(step, device, times) / times * 1e3 for _ in range(5)]
    found = {"ms": statistics.median(milliseconds), "peak_gib": round(peak_memory(device) / 2**30, 2)}
    found["tflops"] = batch * model.max_seq_length * model.flops_per_token() / found["ms"] / 1e9
    if on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        waits = (f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
        found["waits"] = dict(Counter(waits))
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as run:
        seconds_of(step, device, 5)
    kernels = [event for event in run.events() if str(event.device_type).endswith("CUDA")]
    found["kernels"], found["busy_ms"] = len(kernels) / 5, sum(event.device_time_total for event in kernels) / 5e3
    table = run.key_averages().table(
        sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total", row_limit=60
    )
    (stage.folder / f"profile_{batch}_{compiled}.txt").write_text(table, encoding="utf-8")
    return found


def probe_evaluation(shape: Path, windows: int) -> dict:
    import tempfile

    import torch

    from benchmarks.contenders import RandomRows, new_model, ours
    from benchmarks.speed import seconds_of
    from common.devices import choose_device
    from evaluation.loss import SingleCLMEvaluator
    from training.checkpoint import save_checkpoint

    device = choose_device()
    model = new_model(shape, device)
    ours(model, 2)()  # with our kernels
    evaluator = SingleCLMEvaluator(RandomRows(windows, model))
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    evaluation = [seconds_of(lambda: evaluator(model), device) for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        save = [seconds_of(lambda: save_checkpoint(last, model, optimizer, scaler, {}), device) for _ in range(3)]
    return {"windows": windows, "evaluation_s": evaluation, "save_without_moments_s": save}


def report(stage: Stage) -> None:
    """One epoch at the report's settings, from random weights: its time beside the goal of three minutes."""
    data = stage.dataset(stage.shape(), 10)
    short = ("--max_steps", 6, "--evaluation_steps", 3, "--dev_windows", 16) if stage.small else ()
    runs = []
    for recipe in ("report-3", "report-1"):
        name = f"gpu_day_{recipe}"
        flags = ("--dataset_name", data, "--model_select", stage.folder / "shape", "--from_scratch", "--overwrite")
        stage.run(name, "train.py", "--recipe", recipe, *flags, "--run_name", name, *short, most_s=270)
        stage.attempt(f"{name}: losses", lambda name=name: losses(name))
        runs.append(ROOT / "model" / name)
    stage.run("charts", "analysis.py", "runs", *runs, "--output", stage.folder / "report", most_s=30)


def model(stage: Stage) -> None:
    """What the embedded model's shape learns of the standard library in a few minutes, left to right and infilling."""
    data = stage.dataset("tiny", 100)
    sizes = ("--max_steps", 6, "--evaluation_steps", 3, "--dev_windows", 16) if stage.small else (
        "--max_steps", 6000, "--evaluation_steps", 500, "--per_gpu_train_batch_size", 64,
    )  # fmt: skip
    stage.run(
        "train", "train.py", "--model_select", "tiny", "--from_scratch", "--dataset_name", data, "--overwrite",
        "--run_name", "gpu_day_model", "--lr", 1e-3, "--scheduler", "warmupcosine", "--warmup_ratio", 0.05,
        "--weight_decay", 0.1, "--fim_rate", 0.5, *sizes, most_s=420,
    )  # fmt: skip
    for name in ("tiny", ROOT / "model" / "gpu_day_model"):
        output = stage.folder / f"evaluate_{Path(name).name}.json"
        few = ("--dev_windows", 16) if stage.small else ()
        stage.run(f"evaluate_{Path(name).name}", "evaluate.py", "--model_path", name, "--dataset_name", data,
                  "--output", output, *few, most_s=60)  # fmt: skip
    stage.run(
        "charts", "analysis.py", "runs", ROOT / "model/gpu_day_model", "--output", stage.folder / "model", most_s=30
    )


if __name__ == "__main__":
    run_command(main)
