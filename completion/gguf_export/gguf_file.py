"""Write a saved Hugging Face model as a GGUF file, llama.cpp's format. Needs neither torch nor transformers.

convert(Path("model/my_run/0_GPTSingleHead"), Path("model.gguf"), "q8_0")
"""

import functools
import io
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from safetensors import SafetensorError, safe_open

from common.command import InputError, first_line
from common.files import atomic_write
from common.model_files import COMPLETE_COPY, read_config, weight_shards
from completion.gguf_export.architectures import Layout, describe_model
from completion.gguf_export.errors import CannotConvert
from completion.gguf_export.gguf_vocabulary import add_vocabulary

FILE_TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}
CHUNK = 1 << 20  # weights that are converted at a time, so that a large tensor does not need much memory
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Causal masks and rotary frequencies, which older versions of transformers saved, too
NOT_WEIGHTS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")
OUTPUT_LAYER = ("lm_head.weight", "embed_out.weight")
BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Tensor:
    """A tensor that is not read before it is written, so that only one is in memory at a time.

    Attributes:
        read: returns its numbers, bfloat16 as uint16.
        rows: the order in which its rows are written; None: as they are.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    rows: np.ndarray | None = None

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the rows in their new order as float32, some at a time."""
        data = self.read()
        step = max(1, CHUNK // math.prod(self.shape[1:]))
        for start in range(0, len(data), step):
            some = slice(start, start + step)
            values = data[some if self.rows is None else self.rows[some]]
            if values.dtype == np.uint16:  # a bfloat16 is the upper half of a float32
                values = (values.astype(np.uint32) << 16).view(np.float32)
            yield values.astype(np.float32)


def convert(folder: Path, output: Path, kind: str = "q8_0") -> str | None:
    """Write the model in `folder` to the GGUF file `output`, which appears only when it is complete.

    Args:
        kind: how matrices are stored. `q8_0`: 8 bits, and a scale for every 32 weights; a matrix whose rows are no
            multiple of 32 long is stored as f16. `f16`: 16 bits. Vectors are float32 in both.
    Returns:
        Why other programs may tokenize differently with the file, or None, as `add_vocabulary`.
    Raises:
        CannotConvert: llama.cpp may not compute what transformers computes; the message says why.
        InputError: the folder's files are damaged, so that no other program can use them either.
    """
    config = read_config(folder)
    try:
        writer, layout = describe_model(config, lambda arch: gguf.GGUFWriter(None, arch))
        difference = add_vocabulary(writer, folder, config)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(folder.resolve().name)
        writer.add_file_type(FILE_TYPES[kind][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        tensors = dict(_renamed(_stored(folder), layout))
        _check_complete(folder, tensors, layout.blocks)
        stored_as = {name: _stored_as(name, tensor.shape, FILE_TYPES[kind][0]) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            size, block = gguf.GGML_QUANT_SIZES[stored_as[name]]
            stored_bytes = math.prod(tensor.shape) // size * block
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), stored_bytes, stored_as[name])
        head = io.BytesIO()
        writer.fout, writer.state = [head], gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, struct.error) as error:
        # A damaged or edited file may contain anything anywhere.
        raise CannotConvert(f"its config.json or tokenizer.json is damaged ({first_line(error)})") from None
    with atomic_write(output, "wb") as file:
        file.write(head.getvalue())
        for name, tensor in tensors.items():
            writer.write_padding(file, file.tell())
            for chunk in tensor.chunks():
                if not np.isfinite(chunk).all():
                    raise InputError(f"{folder}: {name} holds numbers that are not finite; {COMPLETE_COPY}")
                if np.abs(chunk).max(initial=0) > np.finfo(np.float16).max:
                    raise CannotConvert(f"{name} has a value beyond 16-bit floating point")
                gguf.quantize(chunk, stored_as[name]).tofile(file)
        writer.write_padding(file, file.tell())
    return difference


def _stored_as(name: str, shape: tuple[int, ...], wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    if len(shape) == 1 or name == "position_embd.weight":
        return gguf.GGMLQuantizationType.F32
    return wanted if shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F16


def _check_complete(folder: Path, tensors: dict[str, Tensor], blocks: int) -> None:
    """Raise InputError if a block lacks a tensor that another block has; llama.cpp would not say which."""
    kinds = sorted({BLOCK.sub("", name) for name in tensors if BLOCK.match(name)})
    for name in (f"blk.{block}.{kind}" for block in range(blocks) for kind in kinds):
        if name not in tensors:
            raise InputError(f"{folder}: weights are missing, such as {name} of {blocks} blocks; {COMPLETE_COPY}")


def _renamed(stored: dict[str, Tensor], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with its name and its layout in llama.cpp."""
    names = gguf.get_tensor_name_map(layout.known.arch, layout.blocks)
    head = next((tensor for name, tensor in stored.items() if name in OUTPUT_LAYER), None)
    if not layout.tied and head is None:
        raise CannotConvert("it has no output layer of its own, though config.json says so")
    for name, tensor in stored.items():
        if NOT_WEIGHTS.search(name) or (layout.tied and name in OUTPUT_LAYER):
            continue
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise CannotConvert(f"llama.cpp has no place for its tensor {name}")
        if re.search(layout.known.transposed, name):
            tensor = Tensor(tensor.shape[::-1], lambda read=tensor.read: read().T)
        order = next((order for pattern, order in layout.rows.items() if re.search(pattern, name)), None)
        yield new_name, replace(tensor, rows=order)
        if new_name == "token_embd.weight" and layout.tied:
            if head and not np.array_equal(tensor.read(), head.read()):
                raise CannotConvert("it has an output layer of its own, though config.json says that it has none")
            if layout.known.copies_head:
                yield "output.weight", tensor
    for name, numbers in layout.extra.items():
        yield name, Tensor(numbers.shape, lambda numbers=numbers: numbers)


def _stored(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the folder's safetensors files, by name.

    Such a file contains the length of a JSON header in 8 bytes, the header, and the numbers.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_shards(folder):
        try:
            with safe_open(path, "numpy"):  # checks that the tensors fill the file without gaps
                pass
        except SafetensorError as error:
            raise InputError(f"{path}: damaged ({first_line(error)}); {COMPLETE_COPY}") from None
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise CannotConvert(f"its tensor {name} holds {entry['dtype']} numbers")
            shape, place = tuple(entry["shape"]), start + entry["data_offsets"][0]
            read = functools.partial(np.memmap, path, DTYPES[entry["dtype"]], "r", place, shape)
            tensors[name] = Tensor(shape, read)
    if not tensors:
        raise CannotConvert("it has no model.safetensors")
    return tensors
