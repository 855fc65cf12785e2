"""Model folders as people have them."""

import json
import math
import os
import shutil

import pytest
from conftest import ROOT

from common.command import InputError
from common.model_files import find_pretrained, load_tokenizer, read_config


def test_a_tokenizers_own_lengths_are_switched_off(tmp_path):
    """As tokenizer.json keeps them after a training in which texts were cut and padded."""
    file = json.loads((ROOT / "pretrained" / "tiny" / "tokenizer.json").read_text())
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    text = "def f(x):\n    return x\n" * 3
    assert load_tokenizer(str(tmp_path)).encode(text).ids == load_tokenizer("tiny").encode(text).ids


def test_weights_in_pieces_are_weights(tmp_path, model):
    """In torch's format, as larger models of before 2023 have them."""
    import torch

    from model import GPTSingleHead

    model.save(tmp_path)
    weights = {name: tensor for name, tensor in model.gpt.state_dict().items() if name != "lm_head.weight"}
    (tmp_path / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    assert find_pretrained(str(tmp_path)) == tmp_path
    (tmp_path / file).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{file}: missing"):
        find_pretrained(str(tmp_path))
    (tmp_path / "elsewhere").rename(tmp_path / file)
    loaded = GPTSingleHead.load(tmp_path)
    assert all(torch.equal(loaded.gpt.state_dict()[name], tensor) for name, tensor in weights.items())


TINY = ROOT / "pretrained" / "tiny"


def test_of_a_model_in_shards_the_tokenizer_alone_is_not_the_model(tmp_path, monkeypatch):
    """As convert.py leaves it in the Hub's cache: the index of the shards is there, being a JSON file."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--sharded"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(TINY / name, snapshot)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_pretrained("someone/sharded", weights=False) == snapshot
    with pytest.raises(InputError, match="not in the local cache"):  # so that it would be fetched
        find_pretrained("someone/sharded")
    for shard in index["weight_map"].values():
        shutil.copy(TINY / "model.safetensors", snapshot / shard)
    assert find_pretrained("someone/sharded") == snapshot


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_epsilon": -1}, {"layer_norm_epsilon": math.nan}, {"n_layer": 10**9}, {"n_positions": "x"},
        {"n_head": 0}, {"vocab_size": 2.5}, {"n_embd": True}, {"rope_parameters": {"rope_theta": -1}},
    ],
)  # fmt: skip
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(change, tmp_path):
    from model import GPTSingleHead

    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
    name = next(iter(change["rope_parameters"])) if "rope_parameters" in change else next(iter(change))
    for load in (read_config, GPTSingleHead.load):
        with pytest.raises(InputError, match=f"config.json: {name} is .*take a complete copy"):
            load(tmp_path / "model")


def test_a_tokenizer_whose_template_names_an_unknown_token_is_refused_in_one_line(tmp_path, project):
    shutil.copytree(TINY, tmp_path / "model")
    file = json.loads((TINY / "tokenizer.json").read_text())
    pieces = [{"SpecialToken": {"id": "<nope>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    file["post_processor"] = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {}}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(file))
    for command in (["interact.py", "--prompt", "x"], ["interact.py", "--prompt", "x", "--precision", "fp32"]):
        assert "unknown token '<nope>'" in project.fails(*command, "--model_path", tmp_path / "model")


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "extra.safetensors"])
def test_a_pipe_among_a_models_files_is_refused_and_never_read(name, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "model" / name)
    with pytest.raises(InputError, match=f"{name}: not a regular file"):
        find_pretrained(str(tmp_path / "model"))


def test_a_model_folder_whose_name_is_not_utf8_is_refused(tmp_path, project):
    shutil.copytree(TINY, tmp_path / "\udce9")
    assert "is not UTF-8" in project.fails(
        "interact.py", "--prompt", "x", "--model_path", os.fsencode(tmp_path) + b"/\xe9"
    )


def test_weights_that_are_not_finite_are_refused(tmp_path, model):
    from model import GPTSingleHead

    for value in (math.nan, math.inf):
        model.gpt.transformer.wte.weight.data[3, 3] = value
        model.save(tmp_path)
        with pytest.raises(InputError, match=r"wte.weight holds numbers that are not finite"):
            GPTSingleHead.load(tmp_path)


def test_a_longer_sequence_than_the_model_has_positions_for_is_clipped(model):
    model.max_seq_length = 700
    assert model.max_seq_length == model.gpt.config.n_positions == 128
