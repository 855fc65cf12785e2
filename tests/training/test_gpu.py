"""Checks for GPUs that need none: no step waits for the GPU, attention is causal, steps trace on CUDA tensors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MistralConfig

from common import devices
from data import SrcCodeDataset, TokenBatches
from evaluation.loss import SingleCLMEvaluator
from model import GPTSingleHead, use_fast_kernels
from training.config import TrainConfig
from training.step import SummedLoss, TrainStep

FAKE_CUDA = Path(__file__).parent / "fake_cuda"


class HostReads(TorchDispatchMode):
    """Counts the operations that read a value back to the host; before each, a GPU would have to finish its work."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        reads = ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select", "is_nonzero")
        self.count += any(name in str(function) for name in reads)
        return function(*arguments, **(options or {}))


@pytest.fixture
def train_batches(model, dataset_folder):
    return TokenBatches(SrcCodeDataset(dataset_folder / "train.jsonl", model), model.pad_id, "cpu")


def test_fast_kernels_compute_the_same_and_stay_out_of_the_saved_configuration(model, tmp_path):
    ids = torch.randint(8000, (3, 40), generator=torch.Generator().manual_seed(0))
    model.eval()
    expected = model.logits(ids)
    model.save(tmp_path / "before")
    use_fast_kernels(model.gpt)
    torch.testing.assert_close(model.logits(ids), expected)
    with HostReads() as reads:
        found = model.gpt(input_ids=ids[:, :30], use_cache=True)
    assert reads.count == 0
    rest = [model.gpt(input_ids=ids[:, i : i + 1], past_key_values=found.past_key_values) for i in range(30, 40)]
    torch.testing.assert_close(torch.cat([found.logits, *(each.logits for each in rest)], 1), expected)
    model.save(tmp_path / "after")
    assert (tmp_path / "after/config.json").read_text() == (tmp_path / "before/config.json").read_text()


@pytest.mark.parametrize("window", [16, 64, None])
def test_a_sliding_window_that_is_shorter_than_the_context_keeps_its_mask(window):
    config = MistralConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=window,
    )  # fmt: skip
    gpt = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(99, (2, 64))
    expected = gpt(input_ids=ids).logits
    use_fast_kernels(gpt)
    assert torch.equal(gpt(input_ids=ids).logits, expected)
    assert gpt.config._attn_implementation == ("sdpa" if window == 16 else "causal_sdpa")


def test_no_operation_of_a_training_step_waits_for_the_gpu(model, train_batches):
    use_fast_kernels(model.gpt)
    step = TrainStep(model, TrainConfig(accumulation_steps=2, precision="bf16"))
    rows = torch.tensor([[[0, 1, 2, 3]], [[4, 5, -1, -1]]])
    step(train_batches, rows, 1e-3)
    with HostReads() as reads:
        assert step(train_batches, rows, 1e-3).isfinite()
    assert reads.count == 1  # the isfinite of the line above, which shows that reads are counted


def test_no_operation_of_an_evaluation_batch_waits_for_the_gpu(model, dataset_folder):
    use_fast_kernels(model.gpt)
    dev = SrcCodeDataset(dataset_folder / "dev.jsonl", model)
    counts = []
    for windows in (4, 16):
        with HostReads() as reads:
            SingleCLMEvaluator(dev, batch_size=4, windows=windows)(model)
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_evaluation_takes_smaller_batches_where_memory_is_short(model, dataset_folder, monkeypatch):
    evaluator = SingleCLMEvaluator(SrcCodeDataset(dataset_folder / "dev.jsonl", model), batch_size=8, precision="fp32")
    expected, scores, sizes = evaluator(model), GPTSingleHead.scores, []

    def scarce(self, ids, labels):
        sizes.append(len(ids))
        if len(ids) > 3:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return scores(self, ids, labels)

    monkeypatch.setattr(GPTSingleHead, "scores", scarce)
    assert evaluator(model) == pytest.approx(expected, rel=1e-6)
    assert sizes[:3] == [8, 4, 2]


def test_the_compiled_graph_tells_attention_that_it_is_causal(model):
    use_fast_kernels(model.gpt)
    asked = []

    def backend(graph, _inputs):
        asked.extend(node for node in graph.graph.nodes if "scaled_dot_product_attention" in str(node.target))
        return graph.forward

    loss = SummedLoss(model.train())
    loss._body = torch.compile(model.hidden_states, backend=backend, fullgraph=True, dynamic=False)
    ids = torch.randint(8000, (2, 32))
    loss(ids, ids).backward()
    assert len(asked) == model.gpt.config.n_layer
    assert all(node.kwargs["is_causal"] is True and node.kwargs["attn_mask"] is None for node in asked)


@pytest.mark.skipif(torch.version.cuda is not None, reason="for a CPU build of torch; this one has real CUDA tensors")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ builds what lets a CPU build of torch hold CUDA tensors")
def test_steps_with_accumulation_and_clipping_trace_on_fake_cuda_tensors(base, tmp_path):
    torch_folder, library = Path(torch.__file__).parent, tmp_path / "guard.so"
    libraries = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
    command = ["g++", "-shared", "-fPIC", "-std=c++20", FAKE_CUDA / "guard.cpp", "-o", library, *libraries]
    subprocess.run(command, check=True, capture_output=True)
    script = [sys.executable, FAKE_CUDA / "step.py", library, base, "2", "2", "fp32", "bf16", "fp16"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout)
    assert all(counted[precision]["training"][0] > 100 for precision in ("fp32", "bf16", "fp16"))  # kernels


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_out_of_memory_is_known_by_all_its_names(words, expected):
    assert devices.is_out_of_memory(getattr(torch, "AcceleratorError", RuntimeError)(words)) is expected
