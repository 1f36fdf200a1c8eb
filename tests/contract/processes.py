"""Several processes that do one thing at the same time."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

SPAWN = multiprocessing.get_context("spawn")
_T = TypeVar("_T")


def at_once(functions: Sequence[Callable[..., _T]], *arguments: Any) -> list[_T]:
    """What the functions, each in a process, return for these arguments. Fails where one raises."""
    barrier, results = SPAWN.Barrier(len(functions)), SPAWN.Queue()
    started = [
        SPAWN.Process(target=_run, args=(barrier, results, function, arguments), daemon=True)
        for function in functions
    ]
    for process in started:
        process.start()
    answers = [results.get(timeout=60) for _ in started]
    for process in started:
        process.join(30)
    for trouble, _ in answers:
        assert not trouble, trouble
    return [value for _, value in answers]


def _run(barrier: Barrier, results: Queue[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        barrier.wait(60)
        results.put(("", function(*arguments)))
    except BaseException:
        results.put((traceback.format_exc(), None))
