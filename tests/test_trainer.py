"""ModelTrainer against a plain loop; its schedule, its early stop, and steps that are not finite."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import scalars

from common.command import InputError
from data import SrcCodeDataset
from evaluation.loss import SingleCLMEvaluator
from trainer import ModelTrainer
from training.config import TrainConfig
from training.schedule import lr_factor
from training.step import epoch_order

CONFIG = TrainConfig(
    per_gpu_train_batch_size=4,
    num_epochs_train=3,
    max_steps=20,
    lr=5e-3,
    evaluation_steps=10,
    logging_steps=1,
    precision="fp32",
    compile="off",
)


@pytest.fixture
def datasets(model, dataset_folder):
    return [SrcCodeDataset(dataset_folder / f"{split}.jsonl", model) for split in ("train", "dev")]


def train(model, datasets, config, folder):
    trainer = ModelTrainer(model, *datasets, SingleCLMEvaluator(precision="fp32"), config, folder)
    return trainer.train()


def plain_losses(model, dataset, config):
    """Token-weighted mean loss of each optimizer step of a plain loop."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, eps=1e-6)
    order = epoch_order(len(dataset), 0, config.seed, (4,))
    losses = []
    for step in range(config.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(step / 4, (config.max_steps - step) / 16)  # 20 % of 20 steps are warm-up
        nats, tokens = 0, 0
        for row in order[step].tolist():
            ids = torch.tensor(dataset[row]["input_ids"])
            nats = nats + F.cross_entropy(model.gpt(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
            tokens += len(ids) - 1
        (nats / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(nats.item() / tokens)
    return losses


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_losses_are_those_of_a_plain_loop(model, datasets, tmp_path, batch, accumulation):
    config = replace(CONFIG, per_gpu_train_batch_size=batch, accumulation_steps=accumulation)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = plain_losses(model, datasets[0], config)
    model.load_state_dict(start)
    train(model, datasets, config, tmp_path)
    curve = scalars(tmp_path)["loss_train_recent"]
    assert list(curve) == list(range(1, 21))
    assert list(curve.values()) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0] - 0.5


def test_accumulation_changes_nothing_but_the_memory_it_takes(model, datasets, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ends = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model.load_state_dict(start)
        config = replace(CONFIG, per_gpu_train_batch_size=batch, accumulation_steps=accumulation, max_steps=8)
        train(model, datasets, config, tmp_path / str(batch))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, atol=1e-5, rtol=0)


def test_every_window_is_seen_once_an_epoch_also_in_the_last_incomplete_group():
    orders = [epoch_order(31, epoch, 122, (4, 3)) for epoch in (0, 1)]
    for order in orders:
        assert order.shape == (3, 4, 3)
        assert sorted(order[order >= 0].tolist()) == list(range(31))
    assert not torch.equal(*orders)
    assert torch.equal(orders[0].flatten(), epoch_order(31, 0, 122, (2, 2, 3)).flatten())


def test_an_epoch_counts_every_target_once(model, datasets, tmp_path):
    config = replace(CONFIG, num_epochs_train=1, max_steps=0, per_gpu_train_batch_size=7, accumulation_steps=3)
    report = train(model, datasets, config, tmp_path)
    assert report["tokens_seen"] == sum(datasets[0].lengths) - len(datasets[0])
    assert report["saved_at_total_steps"] == math.ceil(len(datasets[0]) / 21)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("constantlr", [1, 1, 1, 1, 1, 1, 1]),
        ("warmupconstant", [0, 0.5, 1, 1, 1, 1, 1]),
        ("warmuplinear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("warmupcosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0]),
        ("warmupcosinewithhardrestarts", [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_schedules(scheduler, expected):
    assert [lr_factor(scheduler, step, 2, 6) for step in range(7)] == pytest.approx(expected, abs=1e-6)


def test_the_logged_learning_rate_is_the_schedules(model, datasets, tmp_path):
    train(model, datasets, replace(CONFIG, max_steps=5, warmup_ratio=0.4), tmp_path)
    assert list(scalars(tmp_path)["lr"].values()) == pytest.approx([0, 2.5e-3, 5e-3, 1e-2 / 3, 5e-3 / 3])


def test_early_stop_keeps_the_best_model(model, datasets, tmp_path):
    config = replace(CONFIG, lr=0.5, scheduler="constantlr", evaluation_steps=1, early_stop=3)
    report = train(model, datasets, config, tmp_path)
    perplexities = scalars(tmp_path)["eval_perplexity_dev"]
    best_step = min(perplexities, key=perplexities.get)
    assert report["saved_at_total_steps"] == best_step
    assert list(perplexities) == list(range(1, best_step + 4))
    assert len(perplexities) < 20
    kept = SingleCLMEvaluator(datasets[1], precision="fp32")(model.reload(tmp_path))
    assert kept["perplexity"] == pytest.approx(perplexities[best_step], rel=1e-5)
    assert kept == pytest.approx(report["eval_scores_on_dev"])
    best_scores = scalars(tmp_path)["best_score_for_perplexity"]
    assert max(best_scores.values()) == best_scores[best_step + 3] == pytest.approx(-perplexities[best_step])


def test_non_finite_steps_are_skipped_and_ten_in_a_row_end_the_run(model, datasets, tmp_path):
    with torch.no_grad():
        model.gpt.lm_head.weight[7] = float("inf")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="10 steps in a row") as caught:
        train(model, datasets, CONFIG, tmp_path)
    assert "--lr" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
