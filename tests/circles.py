"""What a collection would have to find: objects that are left although nobody refers to them but themselves."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(*kinds: type) -> Iterator[Callable[[], Counter[str]]]:
    """Nothing is collected meanwhile; tells how many objects of these kinds there are more than before."""

    def alive() -> Counter[str]:
        return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))

    gc.collect()
    gc.disable()
    before = alive()
    try:
        yield lambda: alive() - before
    finally:
        gc.enable()
