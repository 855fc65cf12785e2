"""Train a byte-level BPE vocabulary on source code: tokenizer.json and tokenizer_config.json in a model folder.

python dataset/vocabulary.py --source stdlib --vocab_size 1000 --output /tmp/small_vocabulary
python dataset/vocabulary.py --source corpus --vocab_size 8189 --output pretrained/tiny
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.command import Flags, flag, output_folder, parse_flags, run_command
from common.files import atomic_write
from dataset.sources import SourceFile, find_sources, read_text

END = "<|endoftext|>"


@dataclass
class VocabularyConfig(Flags):
    source: tuple[str, ...] = flag(("stdlib",), "folders to learn from, as for dataset/convert.py", type=str, nargs="+")
    include_ignored: bool = flag(False, "as for dataset/convert.py")
    vocab_size: int = flag(
        8189,
        "tokens, with the 256 bytes and <|endoftext|>; a model adds three control words, so the default gives 8192",
        at_least=257,
        at_most=1_000_000,
    )
    output: str = flag(
        "vocabulary", "model folder to write into; a config.json in it is left alone", type=output_folder
    )


def main() -> None:
    config = parse_flags(VocabularyConfig, __doc__)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = Path(config.output)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts(find_sources(config.source, config.include_ignored).files), trainer)
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str())
    settings = {
        "tokenizer_class": "GPT2TokenizerFast",
        "add_prefix_space": False,
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "clean_up_tokenization_spaces": False,
    }
    with atomic_write(folder / "tokenizer_config.json") as file:
        file.write(json.dumps(settings, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens in {folder}")


def texts(files: list[SourceFile]) -> Iterator[str]:
    """The files' texts. Files that cannot be used are left out."""
    return (text for file in files if (text := read_text(file.file)[0]))


if __name__ == "__main__":
    run_command(main)
