"""Training rows with repository context: their text, their targets, and that a run with them restarts exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.command import InputError
from completion.repository import repository
from data import SrcCodeDataset, TokenBatches
from evaluation.loss import SingleCLMEvaluator
from model import GPTSingleHead
from trainer import ModelTrainer
from training.config import TrainConfig
from training.context import RowContext
from training.fim import fim_rows, learn_fim_words

CONFIG = TrainConfig(
    per_gpu_train_batch_size=4, max_steps=6, lr=5e-3, evaluation_steps=3, logging_steps=1, precision="fp32",
    compile="off", context_rate=0.5, fim_rate=0.5, scheduler="constantlr",
)  # fmt: skip


@pytest.fixture
def fim_model(model):
    learn_fim_words(model)
    model.fim_rate = 0.5
    return model


@pytest.fixture
def datasets(fim_model, dataset_folder, monkeypatch):
    monkeypatch.setattr(repository, "GOOD_ENOUGH", 0.05)  # few rows of these ten files resemble others
    return [SrcCodeDataset(dataset_folder / f"{split}.jsonl", fim_model) for split in ("train", "dev")]


def test_context_comes_first_and_is_no_target(fim_model, datasets):
    train = datasets[0]
    context = RowContext(train, fim_model, 0.9, seed=1)
    rows = fim_rows(train, fim_model, 0, seed=1, epoch=0, context=context)
    batches = TokenBatches(rows, fim_model.pad_id, "cpu")
    with_context = np.flatnonzero(rows.firsts > 1)
    assert 0.1 < len(with_context) / len(train) < 0.9
    for i in with_context:
        text = fim_model.tokenizer.decode(rows.tokens[i, : rows.lengths[i]].tolist())
        before, own = text.split("<python>")
        assert all(line.startswith("# ") for line in before.splitlines() if line)
        assert f"# {context._files[i].path}\n" not in before
        assert own
        assert (own_ids(rows, i) == train.tokens[i, 1 : 1 + len(own_ids(rows, i))]).all()
        _, labels = batches.gather(torch.tensor([i]))
        assert (labels[0, 1:] >= 0).sum() == batches.count_targets(torch.tensor([i])) == len(own_ids(rows, i))
        assert labels[0, rows.firsts[i]] == rows.tokens[i, rows.firsts[i]]
    others = np.flatnonzero(rows.firsts == 1)
    assert (rows.tokens[others] == train.tokens[others]).all()


def own_ids(rows, i):
    return rows.tokens[i, rows.firsts[i] : rows.lengths[i]]


def test_rows_with_context_are_cut_in_three_too(fim_model, datasets):
    train = datasets[0]
    context = RowContext(train, fim_model, 0.9, seed=1)
    rows = fim_rows(train, fim_model, 0.9, seed=1, epoch=0, context=context)
    both = np.flatnonzero((rows.firsts > 1) & (rows.middles > 0))
    assert len(both) > 5
    for i in both:
        text = fim_model.tokenizer.decode(own_ids(rows, i).tolist())
        assert text.startswith("<fim_prefix>")
        assert text.endswith(fim_model.tokenizer.eos_token)
        start = fim_model.tokenizer.decode(rows.tokens[i, rows.firsts[i] : rows.middles[i]].tolist())
        assert "<fim_middle>" in start
        assert "<fim_suffix>" in start


def test_a_row_depends_on_seed_epoch_and_number_alone(fim_model, datasets):
    def rows(seed=1, epoch=0, wanted=None):
        context = RowContext(datasets[0], fim_model, 0.5, seed)
        return fim_rows(datasets[0], fim_model, 0.5, seed, epoch, wanted, context)

    first = rows()
    assert (first.tokens == rows().tokens).all()
    some = np.array([9, 3, -1, 4, 2])
    assert (rows(wanted=some).tokens[some[some >= 0]] == first.tokens[some[some >= 0]]).all()
    assert (rows(epoch=1).firsts != first.firsts).any()


def test_a_restarted_run_ends_with_the_same_bits(fim_model, datasets, tmp_path):
    start = {name: value.clone() for name, value in fim_model.state_dict().items()}

    def train(model, config, folder):
        ModelTrainer(model, *datasets, SingleCLMEvaluator(precision="fp32"), config, folder).train()
        return model.state_dict()

    whole = {name: value.clone() for name, value in train(fim_model, CONFIG, tmp_path / "whole").items()}
    fim_model.load_state_dict(start)
    train(fim_model, replace(CONFIG, max_steps=3), tmp_path / "parts")
    loaded = GPTSingleHead.load(tmp_path / "parts" / "last")
    restarted = train(loaded, replace(CONFIG, restore_training=True), tmp_path / "parts")
    assert all(torch.equal(whole[name], restarted[name]) for name in whole)
    with pytest.raises(InputError, match=r"--context_rate 0\.5"):
        train(loaded, replace(CONFIG, restore_training=True, context_rate=0.3), tmp_path / "parts")


def test_a_dataset_without_paths_is_refused(fim_model, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"token_ids": [1, 2, 3], "label": "Python"}\n')
    dataset = SrcCodeDataset(tmp_path / "train.jsonl", fim_model)
    with pytest.raises(InputError, match="needs the meta"):
        RowContext(dataset, fim_model, 0.5, 1)
