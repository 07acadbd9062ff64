"""Do one long thing beside others: what takes no turn of Python's runs on a core of its own."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Begin `work` on a thread; gives a function that waits for it and returns or raises its own.

    The block's error comes first, as if `work` were done after it: the thread is waited for, since
    nothing can stop it, and what became of it is dropped.
    """
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(copy_context().run, work).result
