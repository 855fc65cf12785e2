"""LoRA: small matrices trained beside the frozen ones (Hu et al. 2021, arXiv:2106.09685), through the package peft."""

import warnings
from pathlib import Path

from torch import Tensor, nn

from common.command import InputError, first_line
from common.files import open_input
from model import GPTSingleHead
from training.config import TrainConfig

ADAPTER = "adapter"  # the folder, in peft's own format, inside a saved model or a saved state


def add_lora(model: GPTSingleHead, config: TrainConfig, saved: Path | None = None) -> None:
    """Freeze `model` and train matrices of rank `config.lora_r` beside all its linear layers but the output layer.

    The embeddings of the control words are trained too, because those of new marker words mean nothing yet.

    Args:
        saved: the folder of an adapter to continue with, as `save_adapter` writes it.
    Raises:
        InputError: peft is not installed, or the saved adapter does not fit this model.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise InputError(f"--lora_r needs the package peft ({first_line(error)}): pip install 'peft>=0.21'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2 stores its matrices transposed, which peft notices by itself
        if saved:
            try:
                open_input(saved / "adapter_model.safetensors").close()  # reading from a pipe would never end
                adapted = PeftModel.from_pretrained(model.gpt, str(saved), is_trainable=True)
            except Exception as error:  # a file that someone edited fails in the libraries in many ways
                raise InputError(
                    f"{saved}: not an adapter of {config.model_select} ({first_line(error)}); go on with the flags "
                    "that the run was started with, or start again with --overwrite"
                ) from None
        else:
            settings = LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules="all-linear",
                trainable_token_indices=_control_rows(model),
                task_type="CAUSAL_LM",
            )
            adapted = get_peft_model(model.gpt, settings)
    # peft has changed `model.gpt` itself. In a list, because torch would count the parameters of an attribute again.
    model.adapted = [adapted]


def _control_rows(model: GPTSingleHead) -> dict[str, list[int]] | list[int]:
    ids = sorted(model.tokenizer.all_special_ids)
    tables = (model.gpt.get_input_embeddings(), model.gpt.get_output_embeddings())
    if tables[0].weight is tables[1].weight:  # peft then finds the second by itself
        return ids
    names = {module: name.rpartition(".")[2] for name, module in model.gpt.named_modules()}
    return {names[table]: ids for table in tables}


def has_lora(model: GPTSingleHead) -> bool:
    return hasattr(model, "adapted")


def save_adapter(model: GPTSingleHead, folder: Path) -> None:
    """Write the trained matrices and rows, in peft's own format, into a new folder."""
    model.adapted[0].save_pretrained(str(folder), save_embedding_layers=False)


def save_merged(model: GPTSingleHead, folder: Path) -> None:
    """Save the model in a form that every program reads. With LoRA: merged, and the adapter in a folder of its own."""
    if has_lora(model):
        model.save(folder, _merged_weights(model.gpt))
        save_adapter(model, folder / ADAPTER)
    else:
        model.save(folder)


def _merged_weights(gpt: nn.Module) -> dict[str, Tensor]:
    """The weights of the same function without LoRA, under the names that the model has without it.

    The trained weights stay as they are, because merging and unmerging them in place would round them.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import TrainableTokensWrapper

    merged, shared = {}, {}
    modules = dict(gpt.named_modules())
    for key, value in gpt.state_dict().items():
        name, _, parameter = key.partition(".base_layer.")
        name = name.removesuffix(".token_adapter")
        if not parameter:  # of a module that LoRA has not wrapped, or LoRA's own
            if not any(part in key for part in (".lora_", ".token_adapter.")):
                merged[key] = value
        elif parameter != "weight":
            merged[f"{name}.{parameter}"] = value
        elif isinstance(layer := modules[name], LoraLayer):
            merged[f"{name}.weight"] = value + layer.get_delta_weight("default").to(value.dtype)
        elif isinstance(layer, TrainableTokensWrapper):
            # Tied tables stay one tensor, which is saved once.
            merged[f"{name}.weight"] = shared.setdefault(value.data_ptr(), layer.weight.detach())
    return merged
