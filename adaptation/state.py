"""The flags of adapt.py, and the state of an adaptation, which is saved in its run folder."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from common.command import Flags, InputError, flag, folder_name, output_file
from common.files import ROOT, atomic_write
from common.json_files import read_json
from training.run_folder import is_run

STATE = "adapt.json"  # in the run folder
TOGETHER = ({"config", "loss_windows", "total_steps"}, {"trained", "peak_memory"})  # are saved in one moment
# Fractions of the whole time: to measure one of the two models, and to measure one loss.
MEASURE_SHARE, LOSS_SHARE = 0.16, 0.03


@dataclass
class AdaptFlags(Flags):
    folder: str = flag(".", "the repository: any folder of .py and .java files", positional=True)
    minutes: float = flag(30.0, "how long the whole command may take", above=0, at_most=100_000)
    model_select: str = flag(
        "", "the model to start from, as for train.py; default: what suits this machine and the time"
    )
    run_name: str = flag("", "folder below model/; default: <folder>_adapted, then _adapted_2 ...", type=folder_name)
    lora_r: int = flag(
        -1, "rank of LoRA's matrices; 0: no LoRA; -1: LoRA for large models only", at_least=-1, at_most=4096
    )
    lr: float | None = flag(None, "peak learning rate; default: 2e-4, with LoRA 1e-3", type=float, above=0)
    humaneval: str | None = flag(
        None, "also measure how well single lines of these problems are filled in; RUNS what the model writes", type=str
    )
    output: str | None = flag(
        None, "write the results as JSON to this file, and a chart next to it", type=output_file(".json")
    )
    seed: int = flag(122, "random seed, for the choice of held-out files and for the training", at_least=0, below=2**31)


class Scored(TypedDict):
    """Whether the correct text is the model's first choice, and the bits that it costs the model."""

    exact: bool
    bits: float


class Measured(TypedDict):
    """A place; the first ones have the completion and its seconds too."""

    file: str
    wanted: str
    answers: dict[str, Scored]


class Measurements(TypedDict):
    """The measurements of a model so far; the losses and the results of problems are added when they are done."""

    seconds: float
    places: list[Measured]


class _Saved(TypedDict):
    flags: dict[str, Any]
    spent: float


class Saved(_Saved, total=False):
    """adapt.json."""

    config: dict[str, Any]  # of the training
    loss_windows: int
    total_steps: int
    before: Measurements
    after: Measurements
    trained: dict[str, Any] | None
    share: float  # of the change from the base to the trained weights that the model keeps
    peak_memory: int  # bytes


class State:
    """What has been done so far. It is saved in the run folder, so that a stopped command can continue."""

    def __init__(self, run_folder: Path, flags: AdaptFlags):
        self.flags, self.run_folder, self.name = flags, run_folder, run_folder.name
        self.folder, self.seconds = str(Path(flags.folder).resolve()), 60 * flags.minutes
        self.files = {
            "project": ROOT / "dataset" / self.name / "json" / "dev.jsonl",
            "library": ROOT / "dataset" / f"{self.name}_library" / "json" / "dev.jsonl",
        }
        self.values: dict[str, Any] = {"flags": asdict(flags) | {"folder": self.folder}, "spent": 0.0}
        if (run_folder / STATE).is_file():
            self.values = read_state(run_folder)
        self._began = time.monotonic() - self.values["spent"]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def save(self, **new: Any) -> None:
        self.values |= new | {"spent": self.spent}
        with atomic_write(self.run_folder / STATE) as file:
            json.dump(self.values, file, indent=1)

    @property
    def spent(self) -> float:
        """Seconds that this adaptation has taken, including commands that were stopped."""
        return time.monotonic() - self._began


def read_state(run_folder: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: adapt.json cannot be read, or its parts do not fit together.
    """
    remedy = "remove the folder to start the adaptation again"
    values = read_json(run_folder / STATE, Saved, remedy)
    missing = [name for group in TOGETHER if group & values.keys() for name in sorted(group - values.keys())]
    before, after = (values.get(stage, {"places": []})["places"] for stage in ("before", "after"))
    if missing or len(after) > len(before):
        what = ", ".join(missing) or "a place"
        raise InputError(f"{run_folder / STATE}: {what}: missing; {remedy}")
    return values


def find_run(flags: AdaptFlags) -> tuple[Path, Path | None]:
    """Return the run folder to start or continue in, and that of the last complete adaptation of this repository.

    Raises:
        InputError: an adaptation with other flags was stopped and is not complete.
    """
    folder, earlier, number = Path(flags.folder).resolve(), None, 1
    name = flags.run_name or f"{folder.name}_adapted"
    while True:
        run_folder = ROOT / "model" / (name if number == 1 else f"{name}_{number}")
        number += 1
        if not (run_folder / STATE).is_file():
            if not is_run(run_folder):
                return run_folder, earlier
            continue
        values = read_state(run_folder)
        if values["flags"].get("folder") == str(folder) and "done" in values:
            earlier = run_folder
        elif values["flags"].get("folder") == str(folder):
            kept = vars(flags) | {"folder": str(folder), "output": values["flags"].get("output")}
            for key in (key for key in kept if kept[key] != values["flags"].get(key)):
                raise InputError(
                    f"{run_folder}: was stopped, and began with --{key} {values['flags'].get(key)}; continue with the "
                    "same flags, or remove the folder"
                )
            return run_folder, earlier
