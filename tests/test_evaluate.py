"""The evaluator against sums made by hand, and its command."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from common.source_code import SPECIAL_WORDS
from data import SrcCodeDataset
from evaluation.loss import SingleCLMEvaluator


@pytest.fixture
def dev(model, dataset_folder):
    return SrcCodeDataset(dataset_folder / "dev.jsonl", model)


def test_results_are_sums_over_targets_divided_once(model, dev):
    results = SingleCLMEvaluator(dev, precision="fp32")(model)
    nats = text_nats = hits = targets = text_bytes = 0
    for i in range(len(dev)):
        ids = torch.tensor(dev[i]["input_ids"])
        logits = model.gpt(ids[None]).logits[0, :-1].detach()
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        nats += losses.sum().item()
        hits += (logits.argmax(-1) == ids[1:]).sum().item()
        targets += len(ids) - 1
        is_text = ids[1:] != model.eos_token_id
        text_nats += losses[is_text].sum().item()
        words = model.tokenizer.convert_ids_to_tokens(ids[1:][is_text].tolist())
        text_bytes += len("".join(words))  # one character of a byte-level word is one byte
    assert results["tokens"] == targets
    assert results["loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(nats / targets), rel=1e-4)
    assert results["bits_per_byte"] == pytest.approx(text_nats / math.log(2) / text_bytes, rel=1e-5)
    assert results["accuracy"] == pytest.approx(hits / targets)
    positions = len(dev) * (max(dev.lengths) - 1)
    assert positions > targets
    assert results["perplexity_padded"] == pytest.approx(math.exp(nats / positions), rel=1e-4)


def test_results_do_not_depend_on_the_batch_size(model, dev):
    one, many = (SingleCLMEvaluator(dev, batch_size=size, precision="fp32")(model) for size in (1, 7))
    assert one == pytest.approx(many, rel=1e-6)


def test_a_subset_of_windows_is_always_the_same(model, dev):
    some = [SingleCLMEvaluator(dev, windows=5, batch_size=size, precision="fp32")(model) for size in (2, 5)]
    assert some[0] == pytest.approx(some[1], rel=1e-6)
    assert some[0]["tokens"] < sum(dev.lengths) - len(dev)


def test_the_model_keeps_its_mode(model, dev):
    for mode in (True, False):
        model.train(mode)
        SingleCLMEvaluator(dev)(model)
        assert model.training is mode


def test_bytes_of_tokens_are_those_of_the_text(model):
    from evaluation.loss import token_bytes

    text = "def größe(x):\n\treturn '✓' + x  # 東京\n"
    assert token_bytes(model.tokenizer, model.vocabulary_size)[model.tokenize(text)].sum() == len(text.encode())
    assert token_bytes(model.tokenizer, model.vocabulary_size)[model.tokenizer.all_special_ids].sum() == 0


def test_command_prints_a_table_and_writes_json(project, model, tmp_path):
    model.add_special_words(SPECIAL_WORDS)
    model.save(tmp_path / "model")
    output = tmp_path / "new folder" / "result.json"
    done = project.run("evaluate.py", "--model_path", tmp_path / "model", "--output", output)
    written = json.loads(output.read_text())
    assert f"{written['perplexity']:.4f}" in done.stdout
    assert {"loss", "perplexity_padded", "bits_per_byte", "accuracy", "tokens"} <= written.keys()


def test_the_command_prints_no_nan_and_clips_a_length_beyond_the_models_context(project, model, tmp_path):
    command = ("evaluate.py", "--model_path", tmp_path, "--dev_windows", 2)
    model.save(tmp_path)
    done = project.run(*command, "--max_seq_length", 700)
    assert "max_seq_length 700 is more than the model allows; set to 128" in done.stderr
    model.gpt.get_input_embeddings().weight.data *= 1e30
    model.save(tmp_path)
    assert "its loss is not finite" in project.fails(*command)
