"""An event loop that runs what is ready in an order drawn by chance, and the same one each time for one seed.

asyncio serves first come first. On another machine, or with one more await somewhere, another order is the one that
happens; what must hold has to hold in each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from itertools import count
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


class AnyOrderLoop(asyncio.SelectorEventLoop):
    """Draws from *seed* who comes next; *shuffled* is false for asyncio's own order."""

    def __init__(self, seed: int, *, shuffled: bool) -> None:
        super().__init__()
        if shuffled:
            self._ready: deque[asyncio.Handle] = _AnyOrder(Random(f"order-{seed}"))  # noqa: S311  # not for secrets
        numbers = count()

        def task(_loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], **more: Any) -> _Task[T]:
            made: _Task[T] = _Task(coroutine, loop=self, number=next(numbers), **more)
            return made

        self.set_task_factory(task)  # type: ignore[arg-type]  # it is one


class _AnyOrder(deque[asyncio.Handle]):
    """A queue from which any may come next."""

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self._chance = chance

    def popleft(self) -> asyncio.Handle:
        if len(self) > 1:
            self.rotate(-self._chance.randrange(len(self)))
        return super().popleft()


class _Task(asyncio.Task[T]):
    """A task whose place in a set does not hang on its address, so that a run repeats exactly."""

    number: int

    def __new__(cls, *_: Any, number: int, **__: Any) -> _Task[T]:
        made: _Task[T] = super().__new__(cls)
        made.number = number
        return made

    def __init__(self, *args: Any, number: int, **more: Any) -> None:
        super().__init__(*args, **more)

    def __hash__(self) -> int:
        return self.number
