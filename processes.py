"""Jobs done several at once, in processes of their own with one torch thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple, Protocol

from . import UpweightError

POLL = 0.2
"""Seconds between two looks at what the workers tell."""
PATIENCE = 5.0
"""Seconds that a process has to end when it is asked to."""

Told = tuple[int, str, int, int]
"""Position of a job, stage, units done and in all."""


class Worker(Protocol):
    """What a process keeps for as long as it lives, and does its jobs with."""

    def do(self, job: Any, report: Callable[[str, int, int], None] | None) -> Any:
        """One job; what comes back must pickle."""
        ...


class Ended(NamedTuple):
    """A job that is over: its result, or the error that ended it."""

    position: int
    result: Any
    error: BaseException | None


def in_processes(
    make: Callable[[], Worker],
    jobs: Sequence[Any],
    workers: int,
    *,
    told: Callable[[int, str, int], None],
    ended: Callable[[Ended], None],
    bearable: tuple[type[BaseException], ...] = (),
) -> None:
    """Do jobs in processes of their own, each with one torch thread.

    The processes end with this one, however it ends.

    Args:
        make: Called once in each process for what it works with; pickled.
        jobs: What to do; pickled.
        workers: Processes at once.
        told: Given the position, stage and units done of a job under way.
        ended: Given every job that is over, in the order in which they end.
        bearable: Errors that end one job and leave the others be; any other ends all, and is raised here.

    Raises:
        UpweightError: A process was killed.
    """
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Told] = context.SimpleQueue()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(make, queue)
    )
    try:
        with _uninterrupted():  # what these processes inherit: Ctrl-C is this one's to deal with
            futures = {pool.submit(_do_here, i, job): i for i, job in enumerate(jobs)}
        _gather(futures, queue, told, ended, bearable)
    except BrokenProcessPool as error:
        raise UpweightError(
            "A worker process was killed, perhaps for want of memory; what was finished is kept, and the same command goes on "
            "from there: give fewer --workers."
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(set(multiprocessing.active_children()) - before)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end(processes: set[BaseProcess]) -> None:
    """End processes: politely, and then not."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()


def _gather(
    futures: dict[Future[Any], int],
    queue: SimpleQueue[Told],
    told: Callable[[int, str, int], None],
    ended: Callable[[Ended], None],
    bearable: tuple[type[BaseException], ...],
) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
        while not queue.empty():
            position, stage, units, _ = queue.get()
            told(position, stage, units)
        for future in sorted(done, key=futures.__getitem__):
            try:
                ended(Ended(futures[future], future.result(), None))
            except bearable as error:
                ended(Ended(futures[future], None, error))


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Ctrl-C does nothing meanwhile, and nothing in the processes that are started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_here: tuple[Worker, SimpleQueue[Told]] | None = None
"""In a worker process: what it works with, and where it tells its progress."""


def _start_worker(make: Callable[[], Worker], queue: SimpleQueue[Told]) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not inherited everywhere
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    _here = make(), queue


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to end; two callers would then write the same files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _do_here(position: int, job: Any) -> Any:
    assert _here is not None, "set when the process started"
    worker, queue = _here
    return worker.do(job, lambda stage, done, total: queue.put((position, stage, done, total)))
