"""The measurements of a model, before and after its adaptation."""

import gc
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from adaptation.comparison import load_model, measure_loss, measure_places
from adaptation.state import State
from common.devices import keep_freed_memory
from common.files import atomic_write
from common.json_files import read_json
from evaluation.places import Span, spans_of_dataset

PLACES = "adapt_places.json"  # in the run folder
MOST_PLACES = 400
LATEST = 1.05  # fraction of the whole time after which the adapted model is measured at no further place
PLACES_SHARE = 0.1  # fraction of the whole time for the base model's places


class SavedSpan(TypedDict):
    """One entry of the file PLACES: the fields of a Span."""

    kind: str
    path: str
    prefix: str
    middle: str
    suffix: str
    source: str


def measure(state: State, stage: str, path: str) -> None:
    """Measure a model's losses, places and problems. Skip what an earlier, stopped command has already measured."""
    from tqdm import tqdm

    done = state.values.setdefault(stage, {"seconds": 0.0, "places": []})
    began = state.spent - done["seconds"]

    def save() -> None:
        done["seconds"] = state.spent - began
        state.save()

    print(f"measuring {'the base' if stage == 'before' else 'the adapted model'} on the held-out files", flush=True)
    if "losses" not in done:
        model = load_model(path, state["config"]["max_seq_length"])
        done["losses"] = {n: measure_loss(model, file, state["loss_windows"]) for n, file in state.files.items()}
        del model
        done["places_end"] = state.spent - began + PLACES_SHARE * state.seconds
        save()
    spans = choose_places(state)
    wanted = len(state["before"]["places"]) if stage == "after" else len(spans)
    if not done.get("complete"):
        left = spans[len(done["places"]) : wanted]
        with tqdm(desc="places", initial=wanted - len(left), total=wanted, leave=False, disable=None) as bar:
            for places in measure_places(path, left, state.folder):
                done["places"] += places
                bar.update(len(places))
                save()
                late = (
                    done["seconds"] > done["places_end"] if stage == "before" else state.spent > LATEST * state.seconds
                )
                if late:
                    break
        done["complete"] = True
    if state.flags.humaneval and "humaneval" not in done:
        done["humaneval"] = solve_lines(state, stage, path)
    save()
    gc.collect()
    keep_freed_memory(False)  # what the next stage allocates would not fit into the gaps that this one leaves
    keep_freed_memory()


def choose_places(state: State) -> list[Span]:
    """Return the places in the held-out files. They are chosen once and saved, because a file may change meanwhile."""
    file = state.run_folder / PLACES
    if not file.is_file():
        spans = spans_of_dataset(state.name, MOST_PLACES, state.flags.seed, ("rest of a line",))
        with atomic_write(file) as opened:
            json.dump([asdict(span) for span in spans], opened)
    rows = read_json(file, list[SavedSpan], "remove the run folder to start the adaptation again")
    return [Span(**{name: row[name] for name in SavedSpan.__annotations__}) for row in rows]


def solve_lines(state: State, stage: str, path: str) -> dict[str, Any]:
    from evaluation.pass_at_k import ProblemSettings, measure_problems

    completion = statistics.mean(place["seconds"] for place in state["before"]["places"] if "seconds" in place)
    limit = state.values.setdefault("problems", max(10, int(0.05 * state.seconds / completion)))
    samples = state.run_folder / f"humaneval_{stage}.jsonl"
    settings = ProblemSettings(max_new_tokens=128, infill="line")
    limits = {"samples": samples, "max_problems": limit}
    result, _ = measure_problems(Path(state.flags.humaneval), path, settings, [1], **limits)
    return result["pass_at_k"]["1"]
