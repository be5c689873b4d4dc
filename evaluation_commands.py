"""The command that holds the scores of a run against retraining."""

from __future__ import annotations

from pathlib import Path

from .commands import Answer, Asked, Command
from .evaluation import EvaluateSettings, evaluate
from .options import Option


def _evaluate(asked: Asked) -> Answer:
    found = evaluate(
        asked.path("run"),
        asked.settings[EvaluateSettings],
        scores=[Path(path).expanduser() for path in asked["scores"]],
        out=None if asked["out"] is None else asked.path("out"),
        workers=asked["workers"],
        overwrite=asked["overwrite"],
        progress=True,
    )
    return Answer(data=found.to_dict(), text=found.to_text())


EVALUATION_COMMANDS = {
    "evaluate": Command(
        help="train a run again on parts of its train set, and hold its scores and simpler ones against what comes out",
        run=_evaluate,
        settings=(EvaluateSettings,),
        options=(
            Option(name="run", positional=True, required=True, metavar="RUN", help="run folder with influence.h5"),
            Option(
                name="scores",
                many=True,
                default=(),
                metavar="RUN",
                help="further scores of the same run, or averages over it (folders that attribute --out or --average made), held "
                "against the same refits",
            ),
            Option(name="out", metavar="DIR", help="folder for the page and its tables; not given: RUN/evaluation"),
            Option(
                name="workers", kind=int, default=1, metavar="N", help="refits at once, each in a process of its own"
            ),
            Option(
                name="overwrite",
                kind=bool,
                default=False,
                replayed=False,
                help="replace the page of another evaluation; refits are kept and used again whatever happens",
            ),
        ),
        replay=lambda asked: (
            (asked.path("run") / "evaluation" if asked["out"] is None else asked.path("out")) / "evaluate.toml"
        ),
    ),
}
