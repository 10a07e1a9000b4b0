"""Computes on a device beside the memory into which tensors are read: blocks go there and come back while others are computed.

A slot holds a block of every input as it stands in the file, and one of the output. It is filled again as soon as its block is
widened into the rows, and its output overwritten as soon as that is copied out; rows are one set, since computing is one queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch

from ..ops.method import Kernel
from ..planner.memory import SLOTS, aligned
from .streams import Event, Streams
from .workspace import Ranges, Rows


class DeviceWorkspace(Rows):
    """One worker's memory on a device, taken once: `nbytes` of rows and `staging` bytes of slots."""

    def __init__(self, device: torch.device, streams: Streams, nbytes: int, staging: int, blocks: int) -> None:
        super().__init__(torch.empty(nbytes, device=device, dtype=torch.uint8), blocks)
        self._streams = streams
        self._slots = torch.empty(staging, device=device, dtype=torch.uint8).view(SLOTS, -1)
        self._widened: list[Event | None] = [None] * SLOTS
        self._stored: list[Event | None] = [None] * SLOTS
        self._fed = self._kept = 0

    def feed(
        self, kernel: Kernel, views: list[torch.Tensor], ranges: Ranges, cast: torch.dtype | None, stride: int = 1
    ) -> Iterator[list[torch.Tensor]]:
        """For each range, the elements of each input as float32 rows, rounded to `cast` first if that is given.

        Inputs that the kernel wants whole are given as they are. Rows are valid until the next are asked for, and may be
        overwritten; the next block is on its way while this one is computed with.
        """
        self.arrange(len(views), kernel)
        whole = {i: views[i].to(self.device) for i in kernel.whole}
        coming: deque[tuple[int, Event, list[torch.Tensor]]] = deque()
        waiting = iter(ranges)

        def order(low: int, high: int) -> None:
            slot, self._fed = self._fed % SLOTS, self._fed + 1
            sources = [view[:0] if i in whole else _run(view, low, high, stride) for i, view in enumerate(views)]
            there = self._inputs_of(slot, sources)
            loaded = self._streams.copy_in(partial(_copy, sources, there), _known(self._widened[slot]))
            coming.append((slot, loaded, there))

        for low, high in islice(waiting, SLOTS):
            order(low, high)
        while coming:
            slot, loaded, there = coming.popleft()
            self.length = max(map(len, there))
            rows: list[torch.Tensor] = []
            inputs = [whole.get(i, here) for i, here in enumerate(there)]
            widen = partial(self.widen, inputs, kernel.whole, cast, rows)
            self._widened[slot] = self._streams.compute(widen, [loaded])
            for low, high in islice(waiting, 1):
                order(low, high)
            yield rows

    def store(self, result: torch.Tensor, out: torch.Tensor) -> None:
        """Round a row into a run of the output buffer, once; it is there after `finish`."""
        slot, self._kept = self._kept % SLOTS, self._kept + 1
        nbytes = out.numel() * out.element_size()
        there = self._slots[slot, self._slots.shape[1] - aligned(nbytes) :][:nbytes].view(out.dtype)
        computed = self._streams.compute(partial(there.copy_, result), _known(self._stored[slot]))
        self._stored[slot] = self._streams.copy_out(partial(out.copy_, there, non_blocking=True), [computed])

    def finish(self) -> None:
        """Return when everything that was begun is done."""
        computed = self._streams.compute(lambda: None, [])
        self._streams.wait([computed, *(event for event in self._stored if event is not None)])

    def close(self) -> None:
        """Give the memory back; copies from or to the memory beside the device may be under way after an error."""
        self._streams.rest()
        empty = self._slots.new_empty(0)
        self._memory = self._rows = self._slots = empty
        self._kernel = None
        self._widened, self._stored = [None] * SLOTS, [None] * SLOTS

    def _inputs_of(self, slot: int, sources: list[torch.Tensor]) -> list[torch.Tensor]:
        """Where a block of each input goes in a slot; the output's place is at the slot's end."""
        places, offset = [], 0
        for source in sources:
            nbytes = source.numel() * source.element_size()
            places.append(self._slots[slot, offset : offset + nbytes].view(source.dtype))
            offset += aligned(nbytes)
        return places


def _run(view: torch.Tensor, low: int, high: int, stride: int) -> torch.Tensor:
    """Elements of an input; a copy crosses to the device in one piece, so a sample is gathered first."""
    return view[low:high] if stride == 1 else view[low:high:stride].contiguous()


def _copy(sources: list[torch.Tensor], places: list[torch.Tensor]) -> None:
    for source, place in zip(sources, places, strict=True):
        place.copy_(source, non_blocking=True)


def _known(event: Event | None) -> list[Event]:
    return [] if event is None else [event]
