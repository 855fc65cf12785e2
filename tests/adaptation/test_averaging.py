"""Weights between base and adapted model: they are worse by little on other code, and are averaged once only."""

import shutil

import pytest
import torch

from adaptation.averaging import ADAPTER, SHARES, average
from adaptation.comparison import load_model, measure_loss


@pytest.fixture
def general(dataset_folder):
    return dataset_folder / "train.jsonl"  # made with tiny's vocabulary


def adapted(folder, strength: float):
    """A model that is worse than tiny everywhere, in its run folder."""
    torch.manual_seed(0)
    model = load_model("tiny", 64)
    with torch.no_grad():
        for weight in model.gpt.parameters():
            weight += strength * weight.std().nan_to_num() * torch.randn_like(weight)
    model.save(folder)
    (folder / "README.md").write_text("a card")
    (folder / ADAPTER).mkdir()
    return folder


def test_weights_between_base_and_adapted_model_are_kept_if_more_would_be_forgotten(tmp_path, general):
    best = adapted(tmp_path / "0_GPTSingleHead", 0.1)
    worse = measure_loss(load_model(str(best), 64), general, 8)["loss"]
    share = average(best, "tiny", general, 64, 8)
    assert share in SHARES[1:]
    kept = measure_loss(load_model(str(best), 64), general, 8)["loss"]
    base = measure_loss(load_model("tiny", 64), general, 8)["loss"]
    assert kept < base + 0.7 * (worse - base)
    assert (best / "README.md").read_text() == "a card"
    assert not (best / ADAPTER).exists()  # which holds the whole change

    saved = (best / "model.safetensors").read_bytes()
    assert average(best, "tiny", general, 64, 8) == share  # as after a stop
    assert (best / "model.safetensors").read_bytes() == saved


def test_a_model_that_forgets_nothing_stays_as_it_is(tmp_path, general):
    best = adapted(tmp_path / "0_GPTSingleHead", 1e-4)
    saved = (best / "model.safetensors").read_bytes()
    assert average(best, "tiny", general, 64, 8) == 1
    assert (best / "model.safetensors").read_bytes() == saved
    assert (best / ADAPTER).exists()


def test_new_marker_words_keep_their_embeddings(tmp_path, general, without_markers):
    from training.fim import learn_fim_words

    best = shutil.copytree(without_markers, tmp_path / "0_GPTSingleHead")
    model = load_model(str(best), 64)
    rows = len(model.gpt.get_input_embeddings().weight)
    learn_fim_words(model)
    with torch.no_grad():
        for weight in model.gpt.parameters():
            weight += 5 * torch.randn_like(weight)
    new = model.gpt.get_input_embeddings().weight[rows:].clone()
    assert len(new)
    model.save(best)
    assert average(best, str(without_markers), general, 64, 8) < 1
    assert torch.equal(load_model(str(best), 64).gpt.get_input_embeddings().weight[rows:], new)
