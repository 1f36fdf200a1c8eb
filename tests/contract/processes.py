"""Several processes that do one thing at the same time."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

SPAWN = multiprocessing.get_context("spawn")
_T = TypeVar("_T")


def at_once(function: Callable[..., _T], *arguments: Any, processes: int = 2) -> list[_T]:
    """What the function returns in each of them; it must be a module's. Fails where one raises."""
    barrier, results = SPAWN.Barrier(processes), SPAWN.Queue()
    started = [
        SPAWN.Process(target=_run, args=(barrier, results, function, arguments), daemon=True)
        for _ in range(processes)
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
