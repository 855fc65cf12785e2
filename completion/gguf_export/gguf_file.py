"""A saved Hugging Face model as a GGUF file, llama.cpp's format, without torch or transformers.

convert(Path("model/my_run/0_GPTSingleHead"), Path("model.gguf"), "q8_0")
"""

import contextlib
import functools
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from common.command import first_line
from common.files import atomic_write
from completion.gguf_export.architectures import Layout, describe_model
from completion.gguf_export.errors import CannotConvert
from completion.gguf_export.gguf_vocabulary import Vocabulary, add_vocabulary

Kind = Literal["q8_0", "f16"]
KINDS: dict[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}
CHUNK = 1 << 20  # weights converted at a time, so that memory does not grow with the largest tensor
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Causal masks and rotary frequencies, which older versions of transformers stored
NOT_WEIGHTS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")
OUTPUT_LAYER = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is written, so that memory holds one at a time.

    Attributes:
        read: gives its numbers; bfloat16 as uint16.
        rows: the order in which its rows are written, if another.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    rows: np.ndarray | None = None

    def chunks(self) -> Iterator[np.ndarray]:
        """Its rows in their new order, some at a time, as float32."""
        data = self.read()
        step = max(1, CHUNK // math.prod(self.shape[1:]))
        for start in range(0, len(data), step):
            some = slice(start, start + step)
            yield _float32(data[some if self.rows is None else self.rows[some]])


def convert(folder: Path, output: Path, kind: Kind = "q8_0") -> Vocabulary:
    """Write the model in `folder` to the GGUF file `output`, which appears when it is complete.

    Args:
        kind: how matrices are stored: `q8_0` 8 bits with a scale for every 32 weights, or `f16`. Where a row is no
            multiple of 32 long it is f16 in both; vectors stay float32.
    Raises:
        CannotConvert: llama.cpp is not certain to compute what transformers computes; says why.
    """
    with _foreign(folder / "config.json"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        writer, layout = describe_model(config, lambda arch: gguf.GGUFWriter(None, arch))
    with _foreign(folder / "tokenizer_config.json"):
        vocabulary = add_vocabulary(writer, folder, config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.resolve().name)
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    with _foreign(folder / "model.safetensors"):
        tensors = dict(_renamed(_stored(folder), layout))
        stored_as = {name: _stored_as(name, tensor.shape, KINDS[kind][0]) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        size, block = gguf.GGML_QUANT_SIZES[stored_as[name]]
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), math.prod(tensor.shape) // size * block, stored_as[name]
        )
    with atomic_write(output, "wb") as file:
        writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_padding(file, file.tell())
            for chunk in tensor.chunks():
                _check_range(name, chunk)
                gguf.quantize(chunk, stored_as[name]).tofile(file)
        writer.write_padding(file, file.tell())
    return vocabulary


@contextlib.contextmanager
def _foreign(file: Path) -> Iterator[None]:
    """Turn what comes of a torn or edited file into CannotConvert; it may hold anything in any place."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, struct.error) as error:
        raise CannotConvert(f"its {file.name} is missing or damaged ({first_line(error)})") from None


def _stored_as(name: str, shape: tuple[int, ...], wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    if len(shape) == 1 or name == "position_embd.weight":
        return gguf.GGMLQuantizationType.F32
    return wanted if shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F16


def _check_range(name: str, values: np.ndarray) -> None:
    if not np.abs(values).max(initial=0) <= np.finfo(np.float16).max:  # false for NaN too
        raise CannotConvert(f"{name} has a value beyond 16-bit floating point")


def _renamed(stored: dict[str, Tensor], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under llama.cpp's name, laid out as there."""
    names = gguf.get_tensor_name_map(layout.arch, layout.blocks)
    heads = [tensor for name, tensor in stored.items() if name in OUTPUT_LAYER]
    if not layout.tied and not heads:
        raise CannotConvert("it has no output layer of its own, though config.json says so")
    for name, tensor in stored.items():
        if NOT_WEIGHTS.search(name) or (layout.tied and name in OUTPUT_LAYER):
            continue
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise CannotConvert(f"llama.cpp has no place for its tensor {name}")
        if (
            new_name == "token_embd.weight"
            and layout.tied
            and heads
            and not np.array_equal(tensor.read(), heads[0].read())
        ):
            raise CannotConvert("it has an output layer of its own, though config.json says that it has not")
        if re.search(layout.transposed, name):
            tensor = _transposed(tensor)
        yield new_name, replace(tensor, rows=layout.row_order(name))
        if new_name == "token_embd.weight" and layout.tied and layout.copies_head:
            yield "output.weight", tensor
    for name, numbers in layout.extra.items():
        yield name, Tensor(numbers.shape, lambda numbers=numbers: numbers)


def _transposed(tensor: Tensor) -> Tensor:
    return Tensor(tensor.shape[::-1], lambda: tensor.read().T)


def _stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError):
            raise CannotConvert(f"its {index.name} is damaged") from None
    else:
        raise CannotConvert("it has no model.safetensors")
    return {name: tensor for file in files for name, tensor in _tensors(folder / file)}


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one safetensors file: 8 bytes with the length of a JSON header, the header, the numbers."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(start - 8, size)))
    except (FileNotFoundError, ValueError):
        raise CannotConvert(f"its {path.name} is missing or damaged") from None
    header.pop("__metadata__", None)
    if any(start + entry["data_offsets"][1] > size for entry in header.values()):
        raise CannotConvert(f"its {path.name} ends too early")
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CannotConvert(f"its tensor {name} holds {entry['dtype']} numbers")
        shape, offset = tuple(entry["shape"]), start + entry["data_offsets"][0]
        yield name, Tensor(shape, functools.partial(np.memmap, path, DTYPES[entry["dtype"]], "r", offset, shape))


def _float32(values: np.ndarray) -> np.ndarray:
    """float32 of any of DTYPES; a bfloat16 is the upper half of one."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
