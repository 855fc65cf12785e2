"""LoRA: what is trained, what is saved, exact restarts, and the merged model."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from common.source_code import SPECIAL_WORDS
from completion.complete import complete
from completion.engines.llama_engine import LlamaEngine
from completion.engines.torch_engine import TorchEngine
from model import GPTSingleHead
from training.config import TrainConfig
from training.fim import learn_fim_words
from training.lora import ADAPTER, add_lora, save_merged

pytest.importorskip("peft")
LORA = TrainConfig(lora_r=4, lora_alpha=8, lora_dropout=0.1)


@pytest.fixture(params=["GPT-2", "Llama", "Llama, two tables"])
def adapted(request, base):
    """A random model whose LoRA matrices and control rows no longer have their initial values."""
    torch.manual_seed(0)
    model = GPTSingleHead(str(base), max_seq_length=64, from_scratch=True)
    if request.param != "GPT-2":
        config = LlamaConfig(
            vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128, tie_word_embeddings="two" not in request.param, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model.gpt = LlamaForCausalLM(config)
    model.add_special_words(SPECIAL_WORDS)
    learn_fim_words(model)
    model.fim_rate = 0.5
    add_lora(model, LORA)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1 if ".lora_" in name else 0.02)
    return model.eval()


def test_the_merged_model_is_the_same_function_and_has_the_adapter_beside_it(adapted, base, tmp_path):
    from peft import PeftModel

    before = {name: value.clone() for name, value in adapted.named_parameters()}
    save_merged(adapted, tmp_path / "saved")
    assert all(torch.equal(before[name], value) for name, value in adapted.named_parameters())
    ids = torch.cat((torch.arange(60), torch.tensor(adapted.tokenizer.all_special_ids)))[None]
    merged = GPTSingleHead.load(tmp_path / "saved").eval()
    with torch.inference_mode():
        expected = adapted.logits(ids)
        assert expected.std() > 0.01
        assert torch.allclose(merged.logits(ids), expected, atol=1e-4)
        # The adapter alone, read by peft, on the frozen model that it was trained with.
        plain = type(adapted.gpt)(adapted.gpt.config)
        plain.load_state_dict(frozen(adapted), strict=False)
        alone = PeftModel.from_pretrained(plain, str(tmp_path / "saved" / ADAPTER)).eval()
        assert torch.allclose(alone(ids).logits, expected, atol=1e-5)
    settings = {"max_new_tokens": 1, "temperature": 0, "stop": "none"}
    engines = LlamaEngine(tmp_path / "saved", "f16"), TorchEngine(merged)
    ((one,), (other,)) = (complete(engine, "def add(a, b):", **settings) for engine in engines)
    assert one.mean_log_prob == pytest.approx(other.mean_log_prob, abs=0.02)


def frozen(model):
    """The frozen weights that an adapter was trained with, under their names without it."""
    return {
        key.replace(".base_layer", "").replace(".token_adapter", ""): value
        for key, value in model.gpt.state_dict().items()
        if ".lora_" not in key and "trainable_tokens" not in key
    }


def test_all_linear_layers_and_the_rows_of_control_words_are_trained_and_nothing_else(adapted):
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    linear = [
        name for name, module in adapted.named_modules() if hasattr(module, "lora_A") and "token_adapter" not in name
    ]
    assert len(linear) == 2 * (4 if "GPT2" in type(adapted.gpt).__name__ else 7)
    assert not [name for name in linear if "lm_head" in name]
    rows = {name for name in trained if "trainable_tokens_delta" in name}
    assert len(rows) == (1 if adapted.gpt.config.tie_word_embeddings else 2)
    assert {name for name in trained if ".lora_" not in name} == rows
    assert {len(dict(adapted.named_parameters())[name]) for name in rows} == {len(adapted.tokenizer.all_special_ids)}


def train_command(folder, run_name, *flags):
    command = ["train.py", "--model_select", folder, "--run_name", run_name, "--evaluation_steps", 4]
    command += ["--max_seq_length", 64, "--fim_rate", 0.5, "--scheduler", "constantlr", "--dev_windows", 16]
    return [*command, "--lora_r", 4, "--lora_dropout", 0.1, *flags]


def test_a_restart_is_exact_and_any_command_takes_the_run(project, without_markers):
    project.run(*train_command(without_markers, "lora", "--max_steps", 8))
    project.run(*train_command(without_markers, "lora_torn", "--max_steps", 4, "--gradient_checkpointing"))
    restart = train_command(without_markers, "lora_torn", "--max_steps", 8, "--restore_training")
    assert "continuing after step 4" in project.run(*restart).stderr
    one, two = (project.folder / "model" / name for name in ("lora", "lora_torn"))
    for file in ("last/adapter/adapter_model", "last/optimizer", "0_GPTSingleHead/model"):
        expected, got = (load_file(run / f"{file}.safetensors") for run in (one, two))
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), file
    assert not (one / "last" / "model.safetensors").exists()
    assert "2e-05" not in (one / "hyperparams.json").read_text()  # with LoRA the default is ten times this
    start, best = (load_file(folder / "model.safetensors") for folder in (without_markers, one / "0_GPTSingleHead"))
    tables = [values["transformer.wte.weight"] for values in (start, best)]
    assert torch.equal(*(table[100:8000] for table in tables))  # control words are before and after these
    assert len(tables[1]) == len(tables[0]) + 3  # the marker words
    assert len(tables[1][-3:].unique(dim=0)) == 3  # training has made them different
    measured = project.run("evaluate.py", "--model_path", "model/lora", "--dev_windows", 16, "--max_seq_length", 64)
    assert "bits_per_byte" in measured.stdout


def test_what_cannot_work_is_reported_in_one_line(project, without_markers, base):
    message = project.fails(*train_command(base, "lora_scratch", "--from_scratch"))
    assert "--from_scratch" in message
    project.run(*train_command(without_markers, "lora_changed", "--max_steps", 1))
    restart = train_command(without_markers, "lora_changed", "--max_steps", 2, "--restore_training")
    assert "without --lora_r" not in (message := project.fails(*restart, "--lora_r", 0, log_lines=True))
    assert "with --lora_r" in message
    assert "not an adapter of" in project.fails(*restart, "--lora_r", 4, "--model_select", "tiny", log_lines=True)
