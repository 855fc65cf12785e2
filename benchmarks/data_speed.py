"""Seconds to convert and to load a dataset."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.contenders import new_model
from common.command import InputError
from common.files import ROOT
from data import SrcCodeDataset


def time_data(folder: Path, scratch: Path, repeats: int, quick: bool) -> dict[str, float]:
    """Seconds of the whole convert.py command, and of the dataset's first and later loading."""

    name = f"benchmark_{os.getpid()}"
    source = "dataset/Python" if (ROOT / "dataset" / "Python").is_dir() else "stdlib"
    if quick:
        source = str(Path(json.__file__).parent)
    command = [sys.executable, ROOT / "dataset" / "convert.py", "--source", source, "--tokenizer", folder]
    model = new_model(folder, torch.device("cpu"))
    target = ROOT / "dataset" / name
    seconds = {"convert": [], "load, first": [], "load, cached": []}
    try:
        for turn in range(min(repeats, 3)):
            started = time.perf_counter()
            done = subprocess.run([*command, "--dataset_name", name], cwd=ROOT, capture_output=True, text=True)
            seconds["convert"].append(time.perf_counter() - started)
            if done.returncode:
                raise InputError(f"convert.py failed: {done.stderr.strip().splitlines()[-1]}")
            for what in ("load, first", "load, cached"):
                started = time.perf_counter()
                SrcCodeDataset(target / "json" / "train.jsonl", model, scratch / f"cache{turn}")
                seconds[what].append(time.perf_counter() - started)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return {f"{what} ({Path(source).name})": statistics.median(values) for what, values in seconds.items()}
