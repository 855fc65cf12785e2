"""The README.md of a saved model, with the Hub's metadata, so that its folder can be uploaded as it is."""

from pathlib import Path

from common.command import InputError
from common.files import ROOT
from dataset.format import read_meta
from training.config import TrainConfig

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{base_model}tags: [code, autocoder]
---

# {name}

{how} on the dataset `{dataset}`{split}. It continues source code; it does not answer questions.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("PATH") for kind in (AutoModelForCausalLM, AutoTokenizer))
```

A text begins with its language's control word, `<python>` or `<java>`, without a space after it.{fim}

| on the dataset's dev split, after {steps} steps, {tokens:,} tokens | |
|---|---:|
{scores}

Flags of `train.py` that differ from its defaults: {flags}
"""

FIM = """

It fills in the middle too, trained with `--fim_rate {rate:g}` on two orders: prefix word, suffix word, suffix,
middle word, prefix; and prefix word, prefix, suffix word, suffix, middle word.
After the first, what it writes follows the prefix directly."""


def model_card(config: TrainConfig, scores: dict[str, float], steps: int, tokens: int, fim_rate: float) -> str:
    """The card of a run's best model.

    Args:
        scores: of the dev split, as SingleCLMEvaluator gives them.
        steps, tokens: trained until then.
    """
    is_hub_id = not Path(config.model_select).exists() and config.model_select != "tiny"
    try:
        split = f", split by {read_meta(ROOT / 'dataset' / config.dataset_name / 'json')['flags']['split_by']}"
    except InputError:  # a dataset of the 2020 reference has no meta.json
        split = ""
    default = TrainConfig()
    changed = {name: value for name, value in vars(config).items() if value != getattr(default, name)}
    return CARD.format(
        name=config.run_name,
        base_model=f"base_model: {config.model_select}\n" * is_hub_id,
        how=f"`{config.model_select}`, {'trained from random weights' if config.from_scratch else 'fine-tuned'}",
        dataset=config.dataset_name,
        split=split,
        fim=FIM.format(rate=fim_rate) if fim_rate else "",
        steps=steps,
        tokens=tokens,
        scores="\n".join(f"| {name} | {value:,.4f} |" for name, value in scores.items() if name != "tokens"),
        flags=" ".join(f"`--{name} {value}`" for name, value in changed.items()) or "none",
    )
