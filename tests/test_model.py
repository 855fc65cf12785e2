"""GPTSingleHead: what counts in its loss, what it saves, and how it reads text."""

import json
import logging
import shutil

import pytest
import torch
from conftest import GPT2_VOCABULARY
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from common.command import InputError
from common.model_files import fingerprint, load_tokenizer
from common.source_code import SPECIAL_WORDS
from model import GPTSingleHead


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_padding_changes_neither_loss_nor_gradients(model):
    rows = [list(range(5, 5 + n)) for n in (3, 11, 40)]
    batch = model.padding_features([{"input_ids": row} for row in rows])
    assert batch["input_ids"].shape == (3, 40)
    padded_loss, logits = model(batch)
    assert logits.shape == (3, 40, len(model.tokenizer))

    alone = [model({"input_ids": torch.tensor([row])})[0] for row in rows]
    weighted = sum(loss * (len(row) - 1) for loss, row in zip(alone, rows, strict=True)) / sum(len(r) - 1 for r in rows)
    torch.testing.assert_close(padded_loss, weighted)
    torch.testing.assert_close(gradients(model, padded_loss), gradients(model, weighted))

    much_wider = torch.nn.functional.pad(batch["input_ids"], (0, 20), value=model.tokenizer.pad_token_id)
    torch.testing.assert_close(model({"input_ids": much_wider})[0], padded_loss)


def test_saved_model_gives_identical_logits_in_plain_transformers(model, tmp_path):
    model.eval()
    model.save(tmp_path)
    ids = torch.randint(0, 8000, (2, 30))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model.logits(ids))
    assert torch.equal(GPTSingleHead.load(tmp_path).eval().logits(ids), model.logits(ids))
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<python>") == model.control_id("python")
    assert json.loads((tmp_path / "gpt_sh_config.json").read_text()) == {"max_seq_length": 64, "do_lower_case": False}
    assert not list(tmp_path.glob("*.bin"))


def test_a_run_folder_loads_as_its_best_model(model, tmp_path):
    model.save(tmp_path / "0_GPTSingleHead")
    assert GPTSingleHead.load(tmp_path).max_seq_length == 64
    assert GPTSingleHead.load("tiny").max_seq_length == 512
    assert torch.equal(model.reload(tmp_path).gpt.lm_head.weight, model.gpt.lm_head.weight)


def test_control_words_in_a_text_are_ordinary_text(model):
    text = "x = '<pad><python><|endoftext|>'\n"
    ids = model.tokenize(text)
    assert not set(ids) & set(model.tokenizer.all_special_ids)
    assert model.tokenizer.decode(ids) == text


def test_control_words_are_added_once(model):
    words = len(model.tokenizer)
    rows = model.gpt.get_input_embeddings().num_embeddings
    model.add_special_words(SPECIAL_WORDS)
    assert (len(model.tokenizer), model.gpt.get_input_embeddings().num_embeddings) == (words, rows)
    assert model.control_id("Python") != model.control_id("java")
    assert model.control_id("cobol") is None


def test_length_is_clipped_to_the_models_limit_with_a_warning(base, caplog):
    with caplog.at_level(logging.WARNING):
        assert GPTSingleHead(str(base), max_seq_length=4096, from_scratch=True).max_seq_length == 128
    assert "4096" in caplog.text


def test_lower_case(base):
    model = GPTSingleHead(str(base), do_lower_case=True, from_scratch=True)
    assert model.tokenizer.decode(model.tokenize("DEF Main")) == "def main"


@pytest.mark.parametrize("change", [{"model_max_length": {}}, {"unk_token": "\ud800"}])
def test_a_tokenizer_that_fails_only_when_used_is_refused(model, tmp_path, change):
    model.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
        GPTSingleHead.load(tmp_path)


def test_unknown_models_are_refused_in_one_line(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "nothing"), "nobody/no-such-model"):
        with pytest.raises(InputError) as caught:
            GPTSingleHead(name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_fingerprint_tells_vocabularies_apart_but_ignores_control_words(base, model, tmp_path):
    model.save(tmp_path)
    assert fingerprint(load_tokenizer(str(base))) == fingerprint(load_tokenizer(str(tmp_path)))
    changed = tmp_path / "changed"
    changed.mkdir()
    content = json.loads((base / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["return"], vocabulary["self"] = vocabulary["self"], vocabulary["return"]
    (changed / "tokenizer.json").write_text(json.dumps(content))
    assert fingerprint(load_tokenizer(str(changed))) != fingerprint(load_tokenizer(str(base)))


@pytest.mark.skipif(not GPT2_VOCABULARY.is_dir(), reason="GPT-2's vocabulary is not at ../shared/gpt2")
def test_distilgpt2_has_the_reports_parameter_count(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GPT2_VOCABULARY / name, tmp_path)
    GPT2Config(n_layer=6).save_pretrained(tmp_path)
    model = GPTSingleHead(str(tmp_path), special_words_to_add=SPECIAL_WORDS, from_scratch=True)
    assert sum(p.numel() for p in model.parameters()) == 81_914_880
