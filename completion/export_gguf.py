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
    model_path: str = flag("tiny", "a run folder, a model folder, a known name or a Hub id")
    output: str = flag("model.gguf", "the file to write; an existing file is replaced", type=output_file(".gguf"))
    type: str = flag(
        "q8_0",
        "q8_0: 8.5 bits for each weight; f16: 16 bits, twice the size, more exact",
        choices=("q8_0", "f16"),
    )


def main(argv: list[str] | None = None) -> None:
    config = parse_flags(ExportConfig, __doc__, argv)
    from common.model_files import find_pretrained
    from completion.gguf_export.errors import CannotConvert
    from completion.gguf_export.gguf_file import convert

    folder, output = find_pretrained(config.model_path), Path(config.output)
    try:
        difference = convert(folder, output, config.type)
    except CannotConvert as error:
        raise InputError(f"{folder}: cannot be written as GGUF: {error}") from None
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {config.type}")
    if difference:
        print(f"other programs may split texts into other tokens: {difference}")


if __name__ == "__main__":
    run_command(main)
