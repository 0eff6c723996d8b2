"""Predictions for a plan: each case is predicted once, in parallel processes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.pool import pool, workers_for
from ppdm_bench.memory.host import translation_peak
from ppdm_bench.memory.workload import fault, workload
from ppdm_bench.planning.search import CasePrediction
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import Target

T = TypeVar("T")
_FIXED = ("params", "grads", "optimizer")


class OutlookCase(NamedTuple):
    """One prediction.

    Attributes:
        configuration, phase: configuration and phase to predict.
        brief: whether only the verdict is needed; the prediction then stops as soon as the case does not fit.
    """

    configuration: Configuration
    phase: str
    brief: bool = False


# A generator that yields a case and receives its prediction, or yields a list of questions and receives the answers.
Question = Generator["OutlookCase | list[Question[Any]]", Any, T]
Submit = Callable[[OutlookCase], "Future[CasePrediction]"]


class NoOutlook(RuntimeError):
    """A case cannot be predicted; the message gives the reason."""


def predict(case: OutlookCase, target: Target) -> CasePrediction:
    """Predict one case.

    Raises:
        NoOutlook: the method cannot be run or predicted.
    """
    configuration, phase, brief = case
    work = workload(configuration.resolve(), phase, configuration.shape, configuration.batch_size, "cuda")
    limit = target.capacity - target.beside if brief and target.capacity else None
    try:
        peak = predict_peak(work.build, work.step, work.iterations, target, limit=limit)
    except Exception as error:  # the code of a method can raise any exception
        if limit is not None and isinstance(error, torch.OutOfMemoryError):
            return CasePrediction(False, limit + target.beside, brief=True)
        raise NoOutlook(f"{configuration.label} {phase}: {fault(error)}") from None
    assert peak.needs is not None
    fixed = target.beside + sum(peak.breakdown[kind] for kind in _FIXED)
    return CasePrediction(bool(peak.fits), peak.needs, fixed, host=translation_peak(peak, configuration, phase, "cuda"))


@contextmanager
def predictor(target: Target, workers: int | None = None) -> Iterator[Submit]:
    """Yield a function that submits predictions: with one worker to this process, with several to a process pool.

    Args:
        target: target of the predictions.
        workers: number of processes; by default the number of available cores, at most eight.
    """
    workers = workers or workers_for()
    if workers == 1:
        yield lambda case: _done(case, target)
        return
    with pool(workers) as processes:
        yield lambda case: processes.submit(predict, case, target)


def _done(case: OutlookCase, target: Target) -> "Future[CasePrediction]":
    future: Future[CasePrediction] = Future()
    try:
        future.set_result(predict(case, target))
    except NoOutlook as error:
        future.set_exception(error)
    return future


def ask_all(
    questions: Sequence[Question[T]],
    submit: Submit,
    progress: Callable[[int, int, OutlookCase], None] = lambda *_: None,
    keep: Callable[[int, T | NoOutlook], None] = lambda *_: None,
) -> list[T | NoOutlook]:
    """Answer questions concurrently; if several questions request the same case, it is predicted once.

    Args:
        questions: generators that yield the next request and return their answer.
        submit: function that submits a prediction.
        progress: called with the number of answered questions, the number of finished predictions and the last case.
        keep: called with the index of a question and its answer as soon as it is known, so that an interruption loses
            no answer.

    Returns:
        The answers in the order of the questions. If a case of a question or of its subquestions cannot be predicted,
        the answer is the error.
    """
    answers: dict[int, Any] = {}
    futures: dict[OutlookCase, Future[CasePrediction]] = {}
    waiting: dict[_RunningQuestion, OutlookCase] = {}

    def advance(asked: _RunningQuestion, sent: Any) -> None:
        try:
            wanted = asked.question.send(sent)
        except StopIteration as end:
            asked.answered(end.value)
            return
        if isinstance(wanted, list):
            split(asked, wanted)
            return
        waiting[asked] = wanted
        if wanted not in futures:
            futures[wanted] = submit(wanted)

    def split(asked: _RunningQuestion, parts: Sequence[Question[Any]]) -> None:
        found: dict[int, Any] = {}

        def collect(place: int, answer: Any) -> None:
            found[place] = answer
            if len(found) < len(parts):
                return
            failed = next((one for one in found.values() if isinstance(one, NoOutlook)), None)
            if failed:
                asked.answered(failed)
            else:
                advance(asked, [found[place] for place in range(len(parts))])

        for place, part in enumerate(parts):
            advance(_RunningQuestion(part, partial(collect, place)), None)

    def answered(number: int, answer: Any) -> None:
        answers[number] = answer
        keep(number, answer)

    for number, one in enumerate(questions):
        advance(_RunningQuestion(one, partial(answered, number)), None)
    while waiting:
        wait({futures[case] for case in waiting.values()}, return_when=FIRST_COMPLETED)
        for asked, case in [(asked, case) for asked, case in waiting.items() if futures[case].done()]:
            del waiting[asked]
            if error := futures[case].exception():
                if not isinstance(error, NoOutlook):
                    raise error
                asked.answered(error)
            else:
                advance(asked, futures[case].result())
            progress(len(answers), sum(future.done() for future in futures.values()), case)
    return [answers[number] for number in range(len(questions))]


@dataclass(eq=False)
class _RunningQuestion:
    """A running question and the callback for its answer."""

    question: Question[Any]
    answered: Callable[[Any], None]
