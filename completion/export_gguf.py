"""Write a model as a GGUF file, which Ollama, LM Studio and llama.cpp run.

python completion/export_gguf.py --model_path model/distilgpt2_fine_tuned_coder/0_GPTSingleHead --output coder.gguf
python completion/export_gguf.py --model_path tiny --output tiny.gguf --type f16
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.command import Flags, InputError, flag, output_file, parse_flags, run_command


@dataclass
class ExportConfig(Flags):
    model_path: str = flag("tiny", "folder of a saved model, a known name or a Hub id")
    output: str = flag("model.gguf", "the file to write; an older one is replaced", type=output_file(".gguf"))
    type: str = flag(
        "q8_0",
        "q8_0: 8 bits and a half for a weight; f16: 16, twice the size and closer to it",
        choices=("q8_0", "f16"),
    )


def main(argv: list[str] | None = None) -> None:
    config = parse_flags(ExportConfig, __doc__, argv)
    from common.model_files import find_pretrained
    from completion.gguf_export.errors import CannotConvert
    from completion.gguf_export.gguf_file import convert

    folder, output = find_pretrained(config.model_path), Path(config.output)
    try:
        vocabulary = convert(folder, output, config.type)
    except CannotConvert as error:
        raise InputError(f"{folder}: cannot be written as GGUF: {error}") from None
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {config.type}")
    if vocabulary.difference:
        print(f"other programs may cut texts into other tokens with it: {vocabulary.difference}")


if __name__ == "__main__":
    run_command(main)
