"""What a user can get wrong, in one table for each kind, through the real commands: one line, nothing written."""

import dataclasses
import math
import sys

import pytest

import analysis
import evaluate
import interact
import serve
import train
from benchmarks import __main__ as benchmark
from common.command import InputError, output_file, output_folder, utf8
from completion import export_gguf
from dataset import convert, vocabulary
from training.config import TrainConfig

COMMANDS = [
    (train.main, [], TrainConfig),
    (evaluate.main, [], evaluate.EvaluateFlags),
    (interact.main, [], interact.Config),
    (serve.main, [], serve.ServeFlags),
    (export_gguf.main, [], export_gguf.ExportConfig),
    (benchmark.main, [], benchmark.BenchmarkFlags),
    (convert.main, [], convert.ConvertConfig),
    (vocabulary.main, [], vocabulary.VocabularyConfig),
    (analysis.main, ["data"], analysis.DataFlags),
    (analysis.main, ["runs", "a_run"], analysis.RunsFlags),
]
NOT_PLAIN = ["..", ".", "a/b", "/tmp", "a\\b", ".hidden", "a\nb", "x" * 201, "\udce9"]


def refused(rule):
    """Values that a flag must refuse, drawn from its declaration."""
    if rule.kind in (int, float):
        yield from ("x", "nan", "inf", "1e999", "9" * 5000, "0x10", "1,5")
        step = 1 if rule.kind is int else 1e-9
        for limit, beyond in ((rule.at_least, -step), (rule.at_most, step), (rule.above, 0), (rule.below, 0)):
            if limit is not None:
                yield limit + beyond if rule.kind is int else limit + beyond * max(1, abs(limit))
        if rule.kind is int:
            yield from ("1.5", "1e3")
    elif rule.choices:
        yield from ("x", f"{next(iter(rule.choices))}x")
    elif rule.kind is str:
        pass
    elif rule.kind is utf8:
        yield "\udce9"
    elif rule.kind is output_folder or rule.kind.__qualname__.startswith(output_file.__qualname__):
        yield from (f"{__file__}/below/x", "/dev/null/below/x")
    else:
        yield from NOT_PLAIN


CASES = [
    pytest.param(main, [*arguments, f"{name}={value}"], name, id=f"{main.__module__} {name}={str(value)[:20]!r}")
    for main, arguments, flags in COMMANDS
    for field in dataclasses.fields(flags)
    if field.metadata["rule"] and not field.metadata["positional"]
    for value in ["", *refused(field.metadata["rule"])]
    for name in [f"--{field.name}", *field.metadata["aliases"]]
]


@pytest.mark.parametrize(("main", "arguments", "name"), CASES)
def test_a_value_that_a_flag_does_not_take(main, arguments, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(InputError) as refusal:
        main()
    assert str(refusal.value).startswith(f"{name} ")  # as it was typed
    assert len(str(refusal.value)) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", dict.fromkeys(flags for _, _, flags in COMMANDS))
def test_the_limits_themselves_are_taken_also_from_python(flags):
    for field in dataclasses.fields(flags):
        rule = field.metadata["rule"]
        if rule and rule.kind in (int, float):
            for limit in (rule.at_least, rule.at_most):
                if limit is not None:
                    assert rule.check("--it", str(limit), is_text=True) == limit
            for value in (math.nan, math.inf, "1", True, (rule.at_least or 0) - 1):
                with pytest.raises(InputError, match=f"--{field.name}"):
                    dataclasses.replace(flags(), **{field.name: value})
