"""GPTSingleHead: a causal language model and its tokenizer as one module, saved and loaded together."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, TypedDict

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from common.command import InputError, first_line
from common.json_files import read_json
from common.loss import IGNORED, next_token_scores
from common.model_files import COMPLETE_COPY, find_pretrained, read_config, read_tokenizer
from common.source_code import SPECIAL_WORDS

logger = logging.getLogger(__name__)


class SavedSettings(TypedDict, total=False):
    """gpt_sh_config.json: what a saved model keeps beside transformers' files."""

    max_seq_length: Annotated[int, range(2, 2**31)]
    do_lower_case: bool
    fim_rate: float


class GPTSingleHead(nn.Module):
    """A causal LM (`gpt`; a GPT-2 checkpoint gives GPT2LMHeadModel) together with its tokenizer.

    Args:
        model_name_or_path: a name of model_files.MODEL_MAP, a local folder or a Hub id.
        max_seq_length: tokens per sequence; clipped, with a warning, to what the model's configuration allows.
        do_lower_case: lower the case of every text before it is tokenized.
        special_words_to_add: see `add_special_words`.
        from_scratch: keep configuration and vocabulary, but start from random weights.
    Attributes:
        fim_rate: the highest `train.py --fim_rate` that these weights were trained with; above 0 the model can infill.
    Raises:
        InputError: there is no model under that name, or transformers cannot read its files.
    """

    def __init__(
        self,
        model_name_or_path: str,
        max_seq_length: int = 256,
        do_lower_case: bool = False,
        special_words_to_add: dict[str, str | list[str]] | None = None,
        from_scratch: bool = False,
    ):
        super().__init__()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()  # its warnings are about harmless things
        folder = find_pretrained(str(model_name_or_path), weights=not from_scratch)
        read_config(folder)
        if (folder / "tokenizer.json").is_file():
            read_tokenizer(folder)  # checks it, because transformers would fail without explanation
        try:
            if from_scratch:
                self.gpt = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
            else:  # always float32: in 16 bits, rounding would lose the optimizer's small steps
                self.gpt, found = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True
                )
                _check_weights(folder, self.gpt, found["missing_keys"], found["unexpected_keys"])
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            _ = self.tokenizer("x"), self.tokenizer.all_special_ids  # some wrong settings fail only when used
        except InputError:
            raise
        except Exception as error:  # an edited file can fail anywhere in the libraries
            raise InputError(f"{folder}: cannot be loaded as a causal language model ({first_line(error)})") from None
        self._check_vocabulary(folder)
        self._know_control_words()
        self.do_lower_case = do_lower_case
        self.fim_rate: float = 0.0 if from_scratch else _settings(folder).get("fim_rate", 0.0)
        self.max_seq_length = max_seq_length
        if special_words_to_add is not None:
            self.add_special_words(special_words_to_add)
        self.bos_token_id = self.tokenizer.bos_token_id
        self.eos_token_id = self.tokenizer.eos_token_id

    @property
    def max_seq_length(self) -> int:
        """Tokens per sequence; a larger number than the model has positions for is clipped, with a warning."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        limit = getattr(self.gpt.config, "max_position_embeddings", length)
        if length > limit:
            logger.warning("max_seq_length %d is more than the model allows; set to %d", length, limit)
        self._max_seq_length = min(length, limit)

    @property
    def device(self) -> torch.device:
        return self.gpt.device

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text. A control word in it, such as `<pad>`, is read as ordinary text."""
        if self.do_lower_case:
            text = text.lower()
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def control_id(self, language: str) -> int | None:
        """The token id of a language's control word, or None if this model has none."""
        return self.tokenizer.backend_tokenizer.token_to_id(f"<{language.lower()}>")

    def start_ids(self, language: str) -> list[int]:
        """The ids before every text: those that the tokenizer itself adds, then the control word if there is one."""
        text = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("x")["input_ids"]
        before = next((n for n in range(len(whole)) if whole[n : n + len(text)] == text), 0)
        control = self.control_id(language)
        return whole[:before] + ([] if control is None else [control])

    @property
    def pad_id(self) -> int:
        """The id used for padding. Any id would do, because padding is never counted."""
        known = (self.tokenizer.pad_token_id, self.eos_token_id)
        return next((token for token in known if token is not None), 0)

    @property
    def vocabulary_size(self) -> int:
        """Number of rows of the embedding; all token ids are smaller. Some rows may have no word in the tokenizer."""
        return self.gpt.get_input_embeddings().weight.shape[0]

    def add_special_words(self, special_words_to_add: dict[str, str | list[str]]) -> None:
        """Add control words, as in {"pad_token": "<pad>", "additional_special_tokens": ["<python>"]}, and their rows.

        Words that the tokenizer already has are skipped. The embedding rows of new words start as the mean of all
        others, because random rows could make a new word likely, or change the text after it.
        """
        words = dict(special_words_to_add)
        if "additional_special_tokens" in words:  # transformers 5 calls them extra_special_tokens
            words["extra_special_tokens"] = words.pop("additional_special_tokens")
        known = set(self.tokenizer.get_vocab().values())
        self.tokenizer.add_special_tokens(words)
        new = sorted(set(self.tokenizer.get_vocab().values()) - known)
        if not new:
            return
        if new[-1] >= self.vocabulary_size:
            self.gpt.resize_token_embeddings(new[-1] + 1, mean_resizing=False)
        others = torch.tensor(sorted(known))
        layers = (self.gpt.get_input_embeddings(), self.gpt.get_output_embeddings())
        tables = {id(values): values for layer in layers if layer is not None for values in layer.parameters()}.values()
        with torch.no_grad():
            for values in tables:
                values[new] = values[others].mean(0)

    def _check_vocabulary(self, folder: Path) -> None:
        if not hasattr(self.tokenizer, "backend_tokenizer"):
            raise InputError(f"{folder}: its tokenizer has no tokenizer.json; save it with a newer transformers")
        largest = max(self.tokenizer.get_vocab().values(), default=-1)
        if largest >= self.vocabulary_size:
            raise InputError(
                f"{folder}: its tokenizer has ids up to {largest}, but its embedding only {self.vocabulary_size} rows, "
                f"so they belong to different models; {COMPLETE_COPY}"
            )

    def _know_control_words(self) -> None:
        """Mark control words as such in the tokenizer: the 2020 files store them as ordinary words."""
        plain = {token.content for token in self.tokenizer.added_tokens_decoder.values() if not token.special}
        words = [word for word in SPECIAL_WORDS["additional_special_tokens"] if word in plain]
        if words:
            self.add_special_words({"additional_special_tokens": words})

    def forward(self, input: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean loss per unpadded target in nats (scalar, float32) and logits [B, T, vocabulary].

        Args:
            input: input_ids [B, T] int64, padded on the right; optionally labels [B, T] (IGNORED at tokens that do
                not count) or attention_mask [B, T] (0 where padded). With neither, `<pad>` marks the padding.
        """
        ids = input["input_ids"]
        if "labels" in input:
            labels = input["labels"]
        elif "attention_mask" in input:
            labels = ids.masked_fill(input["attention_mask"] == 0, IGNORED)
        elif self.tokenizer.pad_token_id not in (None, self.eos_token_id):
            labels = ids.masked_fill(ids == self.tokenizer.pad_token_id, IGNORED)
        else:
            labels = ids
        logits = self.logits(ids)
        targets = (labels[:, 1:] != IGNORED).sum()
        return token_nats(logits, labels).sum() / targets.clamp(min=1), logits

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits [B, T, vocabulary] of ids [B, T].

        No attention mask is needed: padding is on the right, where earlier positions of a causal model cannot see it.
        """
        return self.gpt(input_ids=ids, use_cache=False).logits

    def hidden_states(self, ids: Tensor) -> Tensor:
        """The input of the last layer, which computes the logits: [B, T, hidden size] for ids [B, T]."""
        return self.gpt.base_model(input_ids=ids, use_cache=False).last_hidden_state

    @property
    def has_plain_head(self) -> bool:
        """Whether the last layer is only a matrix product, as in GPT-2. Other architectures may scale the logits."""
        return isinstance(self.gpt, GPT2LMHeadModel) and isinstance(self.gpt.lm_head, nn.Linear)

    def scores(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """For each target: its loss in nats [B, T - 1] float32, and whether it is the most likely token, bool."""
        if self.has_plain_head:
            hidden, targets = flat_pairs(self.hidden_states(ids), labels)
            nats, hits = next_token_scores(hidden, self.gpt.lm_head.weight, targets)
            return nats.view(len(ids), -1), hits.view(len(ids), -1)
        logits = self.logits(ids).float()  # argmax would be six times as slow in bf16
        return token_nats(logits, labels), logits[:, :-1].argmax(-1) == labels[:, 1:]

    def get_config_dict(self) -> dict[str, int | bool | float]:
        known = {"max_seq_length": self.max_seq_length, "do_lower_case": self.do_lower_case}
        return known | ({"fim_rate": self.fim_rate} if self.fim_rate else {})

    def flops_per_token(self) -> float:
        """Floating-point operations of a forward and a backward pass for one token of a full window.

        6 for each weight of a matrix product and 12 x layers x width x length for attention, as in PaLM
        (arXiv:2204.02311, appendix B). An embedding counts only if it is also the matrix of the logits.
        """
        config, head = self.gpt.config, self.gpt.get_output_embeddings().weight
        tables = {id(module.weight) for module in self.gpt.modules() if isinstance(module, nn.Embedding)} - {id(head)}
        weights = (p for p in self.gpt.parameters() if p.dim() >= 2 and id(p) not in tables)
        # A frozen matrix needs no gradient of its own.
        products = sum((6 if p.requires_grad else 4) * p.numel() for p in weights)
        return products + 12 * config.num_hidden_layers * config.hidden_size * self.max_seq_length

    def save(self, output_path: str | Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write weights (safetensors; the model's own unless others are given), tokenizer and gpt_sh_config.json."""
        self.gpt.save_pretrained(output_path, state_dict=weights)
        self.tokenizer.save_pretrained(output_path)
        config = json.dumps(self.get_config_dict(), indent=2) + "\n"
        (Path(output_path) / "gpt_sh_config.json").write_text(config, encoding="utf-8")

    @staticmethod
    def load(input_path: str | Path) -> "GPTSingleHead":
        """Load a run folder (its best model), its `0_GPTSingleHead`, or anything else that the constructor accepts.

        Raises:
            InputError: as the constructor.
        """
        folder = find_pretrained(str(input_path))
        settings = _settings(folder)
        return GPTSingleHead(str(folder), settings.get("max_seq_length", 256), settings.get("do_lower_case", False))

    # ---- part of the lab report's interface; only tests and users call these

    def get_embedding_dimension(self) -> int:
        return self.gpt.config.hidden_size

    def get_config(self):
        return self.gpt.config

    def padding_features(self, features_dict_list: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Pad a batch of features to its longest sequence, and add its attention_mask (0 where padded).

        Args:
            features_dict_list: {"input_ids": [...]} of each example; further features are padded in the same way.
        Returns:
            feature name -> [B, longest] int64.
        """
        lengths = torch.tensor([len(features["input_ids"]) for features in features_dict_list])
        longest = int(lengths.max())
        padded = {
            name: torch.tensor([f[name] + [self.pad_id] * (longest - len(f[name])) for f in features_dict_list])
            for name in features_dict_list[0]
        }
        return padded | {"attention_mask": (torch.arange(longest) < lengths[:, None]).long()}

    def reload(self, input_path: str | Path) -> "GPTSingleHead":
        """The best model of a run folder."""
        return GPTSingleHead.load(Path(input_path) / "0_GPTSingleHead")


def _settings(folder: Path) -> SavedSettings:
    file = folder / "gpt_sh_config.json"
    return read_json(file, SavedSettings, "mend it, or remove it to have the defaults") if file.is_file() else {}


def _check_weights(folder: Path, gpt: nn.Module, missing: set[str], unexpected: set[str]) -> None:
    if missing:
        raise InputError(f"{folder}: weights are missing, such as {min(missing)}; {COMPLETE_COPY}")
    for name, weight in gpt.named_parameters():
        # The sum is computed faster than isfinite. If it is not finite, a number may not be, or many may be huge.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise InputError(f"{folder}: {name} holds numbers that are not finite; {COMPLETE_COPY}")
    old_masks = (".attn.bias", ".attn.masked_bias")  # in GPT-2's files
    if unused := [name for name in unexpected if not name.endswith(old_masks)]:
        logger.warning("%s: holds weights that this model does not use, such as %s", folder, min(unused))


def use_fast_kernels(gpt: PreTrainedModel) -> None:
    """Let single kernels compute what is slow in transformers. Results are the same except for rounding.

    - GPT-2's activation, eight operations in transformers, becomes one.
    - Attention is told that it is causal. Otherwise transformers builds a mask in each forward pass: it waits for the
      GPU to do so, and no flash kernel takes a mask. "causal_sdpa" gets none, because it has no mask function.

    From then on `gpt` ignores a two-dimensional attention mask, so its rows must be padded on the right. The saved
    configuration does not change.
    """
    for parent in list(gpt.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU("tanh"))
    config = gpt.config
    context = getattr(config, "max_position_embeddings", None) or sys.maxsize
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    sees_all_before = all(window is None or window >= context for window in windows)
    if config._attn_implementation == "sdpa" and sees_all_before:
        AttentionInterface.register("causal_sdpa", sdpa_attention_forward)
        gpt.set_attn_implementation("causal_sdpa")


def token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each next token.

    Args:
        logits: [B, T, V], any floating dtype; the loss is computed in float32.
        labels: [B, T] int64; the token at position t + 1 is the target of position t.
    Returns:
        [B, T - 1] float32, in nats; 0 where the label is IGNORED.
    """
    targets = labels[:, 1:]  # [B, T - 1]
    nats = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view_as(targets)


def flat_pairs(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [B * (T - 1), H] and the target of each, [B * (T - 1)]."""
    return hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
