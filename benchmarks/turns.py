"""What all benchmarks share: contenders that take turns, the comparison of their medians, and the machine."""

import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from charts.tables import text_table


def take_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return what each contender measures in each of its turns. A turn of all before those warms up."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, measure in contenders.items():
            value = measure()
            if turn:
                measured[name].append(value)
    return measured


def compare(seconds: dict[str, list[float]]) -> list[dict]:
    """Return a row for each contender: its median seconds, and its speedup over the first contender."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {"name": name, "seconds": median, "speedup": first / median, "seconds_all": seconds[name]}
        for name, median in medians.items()
    ]


def speedup_table(rows: list[dict], what: str, unit: str, value: Callable[[dict], float]) -> str:
    """Return a table with one value of each contender and its speedup over the first."""
    cells = ([row["name"], f"{value(row):,.2f}", f"{row['speedup']:.2f}"] for row in rows)
    return text_table([[what, unit, "speedup"], *cells]) + "\n"


def describe_machine() -> dict:
    import torch
    import transformers

    from common.devices import choose_device

    on_gpu = choose_device().type == "cuda"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "device": torch.cuda.get_device_name() if on_gpu else cpu,
        "gpu_memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if on_gpu else None,
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }
