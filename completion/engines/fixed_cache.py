"""Decode with a cache of fixed length, on a GPU as a CUDA graph: one launch a token instead of one for each kernel."""

import inspect
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from common.command import first_line

logger = logging.getLogger(__name__)


def cache_name(gpt: PreTrainedModel) -> str:
    """What a model's arguments and output call the cache: `past_key_values` until transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(gpt.forward).parameters else "past_key_values"


class FixedCache(Cache):
    """A prompt's cache with room for `length` tokens, in tensors that stay where they are, as a CUDA graph needs it.

    transformers has a StaticCache, but its versions do not agree on how it learns where the next token stands.
    """

    def __init__(self, cache: DynamicCache, length: int):
        super().__init__(layers=cache.layers)
        self.place = torch.tensor([cache.get_seq_length()], device=cache.layers[0].keys.device)  # of the next token
        for layer in self.layers:
            room = (0, 0, 0, length - layer.keys.shape[2])
            layer.keys, layer.values = F.pad(layer.keys, room), F.pad(layer.values, room)  # [n, heads, length, width]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        layer.keys.index_copy_(2, self.place, key_states)
        layer.values.index_copy_(2, self.place, value_states)
        return layer.keys, layer.values


class FixedStep:
    """From the candidates' latest tokens [n, 1] to the logits [n, 1, V] of their next, `length` tokens in all.

    A call overwrites the logits of the one before.
    """

    def __init__(self, gpt: PreTrainedModel, cache: DynamicCache, length: int):
        self._gpt, self._cache = gpt, FixedCache(cache, length)
        self._cache_name = cache_name(gpt)
        self._places = torch.arange(length, device=gpt.device)
        self._step: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    def fits(gpt: PreTrainedModel, cache: Cache) -> bool:
        """Whether each token attends to all before it, and the model's forward pass never waits for the GPU."""
        plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
        return plain and gpt._can_compile_fullgraph and "position_ids" in inspect.signature(gpt.forward).parameters

    def __call__(self, tokens: Tensor) -> Tensor:
        if self._step is None:
            self._step = self._capture(tokens) if tokens.is_cuda else self._forward
        logits = self._step(tokens)
        self._cache.place += 1
        return logits

    def _forward(self, tokens: Tensor) -> Tensor:
        place, dtype = self._cache.place, self._gpt.dtype
        mask = torch.zeros(len(self._places), dtype=dtype, device=tokens.device)
        mask = mask.masked_fill(self._places > place, torch.finfo(dtype).min)[None, None, None]  # [1, 1, 1, length]
        cache = {self._cache_name: self._cache}
        return self._gpt(
            input_ids=tokens, position_ids=place[None], attention_mask=mask, use_cache=True, **cache
        ).logits

    def _capture(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """Record one step, which may run any number of times meanwhile, as it writes at its own place alone."""
        tokens, graph, stream = tokens.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # in their first calls libraries set up what a graph must not contain
            for _ in range(3):
                self._forward(tokens)
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph):
                logits = self._forward(tokens)
        except RuntimeError as error:
            logger.warning("decoding without a CUDA graph, more slowly: %s", first_line(error))
            return self._forward

        def replay(latest: Tensor) -> Tensor:
            tokens.copy_(latest)
            graph.replay()
            return logits

        return replay
