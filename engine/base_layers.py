"""A dense model's layers one at a time, by the transformers library's modules: weights come, all states pass, weights go.

Batches of prompts are fixed and each is computed by one thread, so the states depend neither on workers nor on memory. Prompts of
one batch are padded on the right, where attention, which looks to the left, never sees it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..planner.catalog import InputTensor
from ..planner.graph import Load, Segment
from ..planner.recipe import Source
from ..planner.router import BATCH_TOKENS, READ_BYTES, Memory, Router, layer_settings
from .pool import Pool, torch_dtype
from .reader import Inputs, Reader

Tensor = torch.Tensor


class BaseLayers:
    """The layers of a router's base model. Close it after use."""

    def __init__(self, router: Router, inputs: Inputs, memory: Memory, device: torch.device) -> None:
        self._router, self._threads, self._device = router, memory.threads, device
        self._reader = Reader(inputs)
        for tensor in router.reads(everything=True):
            self._reader.open(tensor.file)
        self._piece = Pool(READ_BYTES)
        self._config, self._layers, rotary = layer_modules(router)
        self._rotary = rotary.to(device)
        largest = max(sum(_elements(source) for source in weights.values()) for weights in router.weights)
        self._weights = (
            Pool(4 * largest).tensor(0, "F32", largest) if device.type == "cpu" else torch.empty(largest, device=device)
        )

    def close(self) -> None:
        """Close all files."""
        self._reader.close()

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The embedding rows of some tokens, [tokens, hidden] in float32; only these rows are read."""
        return read_rows(self._reader, self._router.embedding, ids)

    def load(self, layer: int) -> None:
        """Put a layer's weights in place of the last one's."""
        tensors: dict[str, Tensor] = {}
        begin = 0
        for name, source in self._router.weights[layer].items():
            assert isinstance(source, InputTensor)
            target = self._weights[begin : begin + _elements(source)]
            self._widen(source, target)
            tensors[name] = target.view(source.shape)
            begin += len(target)
        self._reader.check({source.file for source in self._router.weights[layer].values() if isinstance(source, InputTensor)})
        self._layers[layer].load_state_dict(tensors, assign=True)

    def run(self, layer: int, states: list[Tensor]) -> list[Tensor]:
        """Let all prompts' states pass through a loaded layer, in place; what its feed-forward part saw of each."""
        module = self._layers[layer]
        seen: dict[int, Tensor] = {}
        hook = module.mlp.register_forward_pre_hook(lambda _, inputs: seen.__setitem__(threading.get_ident(), inputs[0]))
        inside: list[Tensor] = [torch.empty(0)] * len(states)

        def work(batch: range) -> None:
            torch.set_num_threads(1)
            with torch.inference_mode():
                lengths = [len(states[i]) for i in batch]
                rows = torch.nn.utils.rnn.pad_sequence([states[i] for i in batch], batch_first=True).to(self._device)
                out = self._forward(layer, module, rows)
                for row, i, length in zip(range(len(batch)), batch, lengths, strict=True):
                    states[i].copy_(out[row, :length])
                    inside[i] = seen[threading.get_ident()][row, :length].to("cpu", copy=True)

        try:
            with ThreadPoolExecutor(self._threads) as crew:
                list(crew.map(work, batches([len(state) for state in states])))
        finally:
            hook.remove()
            self._layers[layer] = None
        return inside

    def _forward(self, layer: int, module: torch.nn.Module, rows: Tensor) -> Tensor:
        places = torch.arange(rows.shape[1], device=self._device).unsqueeze(0)
        out = module(
            rows,
            attention_mask=_window_mask(self._window(layer), rows.shape[1], self._device),
            position_ids=places,
            position_embeddings=self._rotary(rows, places),
            use_cache=False,
        )
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def _window(self, layer: int) -> int | None:
        """How far back this layer's attention sees, if not everything."""
        config = self._config
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None) or None

    def _widen(self, source: InputTensor, target: Tensor) -> None:
        """Read a tensor piece by piece into float32."""
        dtype = torch_dtype(source.dtype)
        step = READ_BYTES // dtype.itemsize
        for begin in range(0, len(target), step):
            count = min(step, len(target) - begin)
            nbytes = count * dtype.itemsize
            segment = Segment(source.offset + begin * dtype.itemsize, nbytes, 0)
            self._reader.read(Load(source, (segment,), True), self._piece.bytes(0, nbytes))
            target[begin : begin + count].copy_(self._piece.tensor(0, source.dtype, count))


def read_rows(reader: Reader, source: Source, ids: Sequence[int]) -> Tensor:
    """Rows of an embedding, [len(ids), hidden] in float32."""
    assert isinstance(source, InputTensor)
    width = source.shape[1]
    nbytes = width * torch_dtype(source.dtype).itemsize
    pool = Pool(nbytes)
    rows = torch.empty(len(ids), width)
    for row, number in zip(rows, ids, strict=True):
        reader.read(Load(source, (Segment(source.offset + number * nbytes, nbytes, 0),), False), pool.bytes(0, nbytes))
        row.copy_(pool.tensor(0, source.dtype, width))
    reader.check((source.file,))
    return rows


def batches(lengths: Sequence[int]) -> Iterator[range]:
    """Prompts that go through a layer together, in order: at most BATCH_TOKENS with their padding, or a single longer one."""
    first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or max(lengths[first : i + 1]) * (i + 1 - first) > BATCH_TOKENS:
            yield range(first, i)
            first = i


def layer_modules(router: Router) -> tuple[Any, list[Any], Any]:
    """The library's config, its layers without weights, and its rotary embedding."""
    from transformers import AutoConfig, AutoModel

    settings = layer_settings(router.base.config)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    return model.config, list(model.layers), type(model.rotary_emb)(config=model.config)


def _window_mask(window: int | None, length: int, device: torch.device) -> Tensor | None:
    """Which earlier tokens each sees, [1, 1, length, length]; None: all of them."""
    if window is None or window >= length:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def _elements(source: Source) -> int:
    total = 1
    for side in source.shape:
        total *= side
    return total
