"""Model folders as people have them."""

import json

from conftest import ROOT

from common.model_files import find_pretrained, load_tokenizer


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
    loaded = GPTSingleHead.load(tmp_path)
    assert all(torch.equal(loaded.gpt.state_dict()[name], tensor) for name, tensor in weights.items())
