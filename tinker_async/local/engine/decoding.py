"""Continuous batching: samples of many requests, adapters and rules share forward passes.

A request waits, has its prompt read into the cache once, and fans out into rows, one a
sample. The rules: requests start in the order they came; the rows being drawn occupy the
first cache slots, so that row i of a batch is slot i, and prompts being read the slots after
them; a request with samples yet to start keeps at least one row, whose slot holds its prompt.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.choosing import choose
from tinker_async.local.engine.drawing import Request, Row, checked_request
from tinker_async.local.engine.failures import SampleCancelledError, explained
from tinker_async.local.engine.jobs import ModelCard, Result, Sample
from tinker_async.local.engine.slot_cache import SlotCache
from tinker_async.local.engine.stopping import StopRules


class Forward(Protocol):
    """What the decoder needs of a base model; `BaseModel` says more."""

    card: ModelCard
    device: torch.device
    dtype: torch.dtype

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: SlotCache | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """Run the layers: `(rows, length)` to `(rows, length, hidden)`."""
        ...

    def logits(self, hidden: Tensor, adapter_names: Sequence[str] | None = None) -> Tensor:
        """Apply the head: `(rows, length, hidden)` to float32 `(rows, length, vocab)`."""
        ...


class Decoder:
    """Draws samples for many requests at once. Not thread-safe.

    Args:
        base: The model, with all adapters that requests may name.
        rules: Reads stop rules.
        max_rows: Most samples in one forward pass.
        max_cache_tokens: Most cached tokens, rows times the longest final length; raised to
            the context length, so that each request fits alone.
        prefill_tokens: Most prompt tokens, padding included, read in one step.
    """

    def __init__(
        self,
        base: Forward,
        rules: StopRules,
        *,
        max_rows: int = 64,
        max_cache_tokens: int = 65_536,
        prefill_tokens: int = 1024,
    ) -> None:
        self._base = base
        self._rules = rules
        self._max_rows = max_rows
        self._max_cache_tokens = max(max_cache_tokens, base.card.max_context_length)
        self._prefill_tokens = prefill_tokens
        self._waiting: deque[Request] = deque()
        self._waiting_keys: set[str] = set()
        self._full = False  # whether the first that waits does so for want of room
        self._reading: list[Request] = []  # between steps at most one, read in part
        self._fanning: Request | None = None  # the one with samples yet to start
        self._rows: list[Row] = []  # row i has cache slot i
        self._in_use: Counter[str] = Counter()
        self._read_last = False
        self._cache = SlotCache(
            max_tokens=self._max_cache_tokens, max_rows=max_rows, device=base.device
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._rows or self._reading or self._waiting)

    @property
    def rows_active(self) -> int:
        """Samples being drawn."""
        return len(self._rows)

    @property
    def requests_waiting(self) -> int:
        """Requests whose prompt has not been read to its end."""
        return len(self._waiting) + len(self._reading)

    def waits_for_room(self, key: str) -> bool:
        """Whether the request with this key has not begun because others fill the batch.

        May be asked from other threads: a moment's view.
        """
        return self._full and key in self._waiting_keys

    def uses(self, adapter: str) -> bool:
        """Whether a request that is not done needs this adapter."""
        return self._in_use[adapter] > 0

    def admit(self, job: Sample, adapter: str, done: Callable[[Result], None]) -> None:
        """Queue a request.

        Args:
            job: What to draw.
            adapter: Its adapter's name in the base model.
            done: Called once, from `step`, `cancel` or `fail_all`, with a `SampleResponse` or
                an exception instance; not at all if this raises.

        Raises:
            InvalidInputError: The request cannot be right for this model.
        """
        request = checked_request(job, adapter, done, card=self._base.card, rules=self._rules)
        self._waiting.append(request)
        self._waiting_keys.add(job.key)
        self._in_use[adapter] += 1

    def step(self) -> None:
        """Do one forward pass at most: read prompts, or draw one token for each row.

        What goes wrong here is reported to the requests that have begun, and all of them
        are given up, since their part of the cache is not to be trusted. Those that
        wait go on.
        """
        try:
            with torch.inference_mode():
                self._step()
        except Exception as error:  # noqa: BLE001  # the boundary between requests and engine
            begun = self._begun()
            self._rows, self._reading, self._fanning = [], [], None
            self._cache.drop()
            for request in begun:
                self._end(request, explained(error))
        self._full = self._is_full()

    def cancel(self, key: str) -> None:
        """Give up the requests with this key, with `SampleCancelledError`. Unknown keys pass."""
        for request in [*self._begun(), *self._waiting]:
            if key and request.job.key == key:
                self._give_up(request, SampleCancelledError(f"sample {key} was cancelled"))

    def fail_all(self, error: BaseException) -> None:
        """Give up all requests, with this error."""
        for request in [*self._begun(), *self._waiting]:
            self._give_up(request, error)

    def _step(self) -> None:
        self._fan_out()
        fresh = [row for row in self._rows if not row.tokens]
        if fresh:
            self._extend(fresh, torch.stack([_first_logits(row.request) for row in fresh]))
            return
        # Reading prompts and drawing tokens take turns, so that neither waits for long.
        rows_turn = bool(self._rows) and self._read_last
        if not rows_turn:
            self._take_prompts()
        self._read_last = bool(self._reading) and not rows_turn
        if self._read_last:
            self._read()
        elif self._rows:
            self._decode()

    # Which requests are in the cache

    def _begun(self) -> list[Request]:
        """Requests that hold cache slots, each once."""
        return [*dict.fromkeys(row.request for row in self._rows), *self._reading]

    def _fits(self, rows: int, more: Sequence[Request] = ()) -> bool:
        """Whether so many rows can all reach their end in the cache."""
        longest = max(request.final_tokens for request in [*self._begun(), *more])
        return rows <= self._max_rows and rows * longest <= self._max_cache_tokens

    def _take_prompts(self) -> None:
        """Take what to read next: the rest of a prompt, or as many whole ones as fit."""
        batch = self._reading
        while self._waiting and not self._fanning and self._fits_in(batch, self._waiting[0]):
            request = self._waiting.popleft()
            self._waiting_keys.discard(request.job.key)
            batch.append(request)
            if request.job.num_samples > 1:
                self._fanning = request  # its other samples come before later requests
        # Rows of one adapter side by side need no copying together, layer by layer.
        batch.sort(key=lambda request: request.adapter)

    def _is_full(self) -> bool:
        """Whether the first that waits can begin only when one of those that have begun has ended."""
        if not self._waiting:
            return False
        rows = len(self._rows) + len(self._reading)
        if self._fanning:
            return self._fanning.first_logits is not None and not self._fits(rows + 1)
        return not self._fits(rows + 1, [self._waiting[0]])

    def _fits_in(self, batch: list[Request], request: Request) -> bool:
        """Whether a prompt can be read in one step with these, and has room in the cache."""
        longest = max(len(one.prompt) for one in [*batch, request])
        if batch and longest * (len(batch) + 1) > self._prefill_tokens:
            return False
        return self._fits(len(self._rows) + len(batch) + 1, [request])

    def _fan_out(self) -> None:
        """Give rows to samples yet to start, by copies of a row whose prompt is the same."""
        request = self._fanning
        if request is None or request.first_logits is None:
            return
        while not request.all_started and self._fits(len(self._rows) + 1):
            source = next(slot for slot, row in enumerate(self._rows) if row.request is request)
            self._cache.fork(source, len(request.prompt))
            self._rows.append(request.start())
        if request.all_started:
            self._fanning = None

    # Forward passes

    def _read(self) -> None:
        """Read the prompts taken, or the next part of the one that is long."""
        batch, first = self._reading, len(self._rows)
        names = [request.adapter for request in batch]
        start = batch[0].read_tokens
        counts = [min(len(one.prompt) - start, self._prefill_tokens) for one in batch]
        self._cache.prefill(first, counts, start=start)
        hidden = self._prompt_states(batch, start, counts, names)  # (B, T, hidden)
        for place, (request, count) in enumerate(zip(batch, counts, strict=True)):
            request.read_tokens += count
            if request.scores:
                request.scores.add(hidden[place, :count], start, self._head(request.adapter))
        if batch[0].read_tokens < len(batch[0].prompt):
            return
        last = hidden[torch.arange(len(batch)), torch.tensor(counts) - 1]  # (B, hidden)
        logits = self._base.logits(last[:, None], names)[:, 0]  # (B, vocab)
        self._reading = []
        for request, row_logits in zip(batch, logits, strict=True):
            request.first_logits = row_logits
            self._rows.append(request.start())
        self._extend(self._rows[first:], logits)

    def _prompt_states(
        self, batch: list[Request], start: int, counts: list[int], names: list[str]
    ) -> Tensor:
        longest = max(counts)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)  # (B, T), padded on the right
        for place, (request, count) in enumerate(zip(batch, counts, strict=True)):
            ids[place, :count] = request.prompt[start : start + count]
        positions = torch.arange(start, start + longest, device=self._base.device)  # (T,)
        return self._base.hidden_states(
            ids.to(self._base.device),
            positions.expand(len(batch), -1),
            self._mask(positions[None], start + longest).expand(len(batch), -1, -1, -1),
            self._cache,
            names,
        )

    def _decode(self) -> None:
        """Draw one token for each row."""
        rows = list(self._rows)
        names = [row.request.adapter for row in rows]
        positions, columns = self._cache.decode(len(rows))  # (B,)
        last = torch.tensor([[row.tokens[-1]] for row in rows], device=self._base.device)
        mask = self._mask(positions[:, None], columns)
        hidden = self._base.hidden_states(last, positions[:, None], mask, self._cache, names)
        self._extend(rows, self._base.logits(hidden, names)[:, 0])

    def _mask(self, positions: Tensor, columns: int) -> Tensor:
        """Additive mask `(rows, 1, length, columns)` for positions `(rows, length)`."""
        hidden = torch.arange(columns, device=positions.device) > positions[..., None]
        mask = torch.zeros(hidden.shape, dtype=self._base.dtype, device=positions.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]

    def _head(self, adapter: str) -> Callable[[Tensor], Tensor]:
        return lambda hidden: self._base.logits(hidden[None], [adapter])[0]

    # Rows

    def _extend(self, rows: list[Row], logits: Tensor) -> None:
        """Choose a token for each of these rows, and see which samples that completes."""
        choice = choose(
            logits,
            [row.request.job.params for row in rows],
            [row.uniforms.next() for row in rows],
            top=max(row.request.job.topk_sample_logprobs for row in rows),
        )
        broken = {}
        for place, row in enumerate(rows):
            row.append(choice, place)
            if not choice.finite[place]:
                broken[row.request] = True
        for request in broken:
            self._give_up(request, _diverged())
        for row in rows:
            reason = None if row.request in broken else row.stop_reason()
            if reason:
                self._finish(row, reason)

    def _finish(self, row: Row, reason: str) -> None:
        """Keep a complete sample; its slot goes to the request's next one, or is given back."""
        request = row.request
        request.finished[row.index] = row.sequence(reason)
        slot = self._rows.index(row)
        if request.all_started:
            self._leave(slot)
        else:
            self._cache.truncate(slot, len(request.prompt))
            self._rows[slot] = request.start()
        if request.all_finished:
            self._end(request, request.response())

    def _leave(self, slot: int) -> None:
        """Give back a row's slot: the last row takes it, and a prompt being read moves up."""
        last = len(self._rows) - 1
        self._cache.replace(slot, last)
        self._rows[slot] = self._rows[last]
        self._rows.pop()
        if self._reading:
            self._cache.replace(last, last + 1)
        self._cache.pop()

    @torch.inference_mode()  # the cache was made in it, and cannot be changed outside
    def _give_up(self, request: Request, error: BaseException) -> None:
        for slot in reversed(range(len(self._rows))):
            if self._rows[slot].request is request:
                self._leave(slot)
        if request in self._reading:
            self._reading.remove(request)
            self._cache.pop()
        if request in self._waiting:
            self._waiting.remove(request)
            self._waiting_keys.discard(request.job.key)
        if request is self._fanning:
            self._fanning = None
        self._end(request, error)

    def _end(self, request: Request, result: Result) -> None:
        self._in_use[request.adapter] -= 1
        if not self._in_use[request.adapter]:
            del self._in_use[request.adapter]  # or each adapter would leave a zero behind
        request.done(result)


def _first_logits(request: Request) -> Tensor:
    if request.first_logits is None:
        raise RuntimeError("a row was started before its prompt was read")
    return request.first_logits


def _diverged() -> InvalidInputError:
    return InvalidInputError(
        "the model gave logits that are not finite numbers",
        field="snapshot_id",
        hint="its training has diverged: lower the learning rate",
    )
