"""FIM rows: the text that they spell, that they can be made again, and that a run with them restarts exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import scalars

from common.command import InputError
from common.model_files import FIM_FAMILIES
from data import SrcCodeDataset
from evaluation.loss import SingleCLMEvaluator
from model import GPTSingleHead
from trainer import ModelTrainer
from training.config import TrainConfig
from training.fim import fim_rows, learn_fim_words

CONFIG = TrainConfig(
    per_gpu_train_batch_size=4,
    max_steps=12,
    lr=5e-3,
    evaluation_steps=6,
    logging_steps=1,
    precision="fp32",
    compile="off",
    fim_rate=0.5,
)


@pytest.fixture
def fim_model(model):
    learn_fim_words(model)
    model.fim_rate = 0.5
    return model


@pytest.fixture
def datasets(fim_model, dataset_folder):
    return [SrcCodeDataset(dataset_folder / f"{split}.jsonl", fim_model) for split in ("train", "dev")]


def spelled(model, rows, i):
    """Prefix, middle and suffix of a cut row, and which of the two orders it has."""
    ids = rows.tokens[i, : rows.lengths[i]].tolist()
    text = model.tokenizer.decode(ids)
    prefix_word, suffix_word, middle_word = FIM_FAMILIES[0]
    assert text.startswith("<python>" + prefix_word)
    assert ids[-1] == model.eos_token_id
    text = text.removeprefix("<python>" + prefix_word).removesuffix(model.tokenizer.eos_token)
    middle = model.tokenizer.decode(ids[rows.middles[i] : -1])
    assert text.endswith(middle)
    text = text[: len(text) - len(middle)]
    if text.startswith(suffix_word):
        suffix, prefix = text.removeprefix(suffix_word).split(middle_word)
        return prefix, middle, suffix, "suffix first"
    prefix, suffix = text.removesuffix(middle_word).split(suffix_word)
    return prefix, middle, suffix, "prefix first"


def test_a_cut_row_spells_the_text_it_had(fim_model, datasets):
    train = datasets[0]
    rows = fim_rows(train, fim_model, fim_rate=0.5, seed=1, epoch=0)
    cut = np.flatnonzero(rows.middles)
    assert 0.4 < len(cut) / len(train) < 0.6
    orders, whole = [], 0
    for i in cut:
        original = fim_model.tokenizer.decode(train[i]["input_ids"][1:-1])
        prefix, middle, suffix, order = spelled(fim_model, rows, i)
        orders.append(order)
        assert prefix + middle + suffix in original  # its beginning and end may have been cut off
        whole += prefix + middle + suffix == original
        assert rows.lengths[i] <= train.max_seq_length
    assert 0.3 < orders.count("suffix first") / len(orders) < 0.7
    assert whole > 0
    untouched = np.flatnonzero(rows.middles == 0)
    assert (rows.tokens[untouched] == train.tokens[untouched]).all()


def test_a_row_depends_on_seed_epoch_and_number_alone(fim_model, datasets):
    def cut(seed=1, epoch=0, wanted=None):
        return fim_rows(datasets[0], fim_model, 0.5, seed, epoch, wanted)

    first, again = cut(), cut()
    assert (first.tokens == again.tokens).all()
    some = np.array([7, -1, 3, 11])
    assert (cut(wanted=some).tokens[some[some >= 0]] == first.tokens[some[some >= 0]]).all()
    assert (cut(epoch=1).tokens != first.tokens).any()
    assert (cut(seed=2).tokens != first.tokens).any()


def test_rows_that_are_no_text_stay_as_they_are(fim_model, datasets):
    train = datasets[0]
    half = fim_model.tokenize("é")[:1]  # the first byte of two: this vocabulary has no token for the character
    assert "\ufffd" in fim_model.tokenizer.decode(half)
    train.tokens = np.array(train.tokens)
    train.tokens[0, 1] = half[0]
    assert not fim_rows(train, fim_model, fim_rate=1, seed=1, epoch=0).middles[0]


def test_a_family_that_the_model_knows_is_used_and_no_word_added(model):
    model.add_special_words({"additional_special_tokens": list(FIM_FAMILIES[2])})
    size = len(model.tokenizer)
    assert learn_fim_words(model) == FIM_FAMILIES[2]
    assert len(model.tokenizer) == size


def test_what_a_model_has_learned_of_it_is_loaded_with_it(fim_model, tmp_path):
    fim_model.save(tmp_path)
    assert GPTSingleHead(str(tmp_path)).fim_rate == 0.5
    assert GPTSingleHead(str(tmp_path), from_scratch=True).fim_rate == 0


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (0.5, 0.3, "It fills in the middle too, trained with `--fim_rate 0.3`"),
        (0.5, 0.0, "Its base was trained with `--fim_rate 0.5` to fill in the middle. This run was trained without"),
        (0.0, 0.0, ""),
    ],
)
def test_the_card_says_what_this_run_has_trained(before, now, expected, model, datasets, tmp_path):
    model.fim_rate = max(before, now)
    config = replace(CONFIG, max_steps=1, fim_rate=now)
    ModelTrainer(model, *datasets, SingleCLMEvaluator(), config, tmp_path / "run").train()
    card = (tmp_path / "run" / "0_GPTSingleHead" / "README.md").read_text()
    assert expected in card
    assert ("fim_rate" in card) == bool(expected)


def test_a_restarted_run_ends_with_the_same_bits(fim_model, datasets, tmp_path):
    start = {name: value.clone() for name, value in fim_model.state_dict().items()}

    def train(model, config, folder):
        ModelTrainer(model, *datasets, SingleCLMEvaluator(precision="fp32"), config, folder).train()
        return model.state_dict()

    config = replace(CONFIG, scheduler="constantlr")  # so that a run of six steps begins like one of twelve
    whole = {name: value.clone() for name, value in train(fim_model, config, tmp_path / "whole").items()}
    middles = scalars(tmp_path / "whole")["loss_middle_dev"]
    assert list(middles) == [6, 12]
    assert middles[12] < middles[6]
    fim_model.load_state_dict(start)
    train(fim_model, replace(config, max_steps=6), tmp_path / "parts")
    loaded = GPTSingleHead.load(tmp_path / "parts" / "last")
    assert loaded.fim_rate == 0.5
    restarted = train(loaded, replace(config, restore_training=True), tmp_path / "parts")
    assert all(torch.equal(whole[name], restarted[name]) for name in whole)
    with pytest.raises(InputError, match=r"--fim_rate 0\.5"):
        train(loaded, replace(config, restore_training=True, fim_rate=0.3), tmp_path / "parts")


def test_the_epochs_prepared_ahead_are_the_epochs_themselves(fim_model, datasets, tmp_path):
    config = replace(CONFIG, max_steps=0, num_epochs_train=2)
    trainer = ModelTrainer(fim_model, *datasets, SingleCLMEvaluator(), config, tmp_path)
    for epoch in range(2):
        expected = fim_rows(datasets[0], fim_model, 0.5, config.seed, epoch)
        assert trainer.fim.batches(epoch).lengths.tolist() == expected.lengths.tolist()
