"""``ppdm-bench gpu``: everything that needs a GPU, in pieces of at most ten minutes each."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.terminal import locked_folder, notify, report_outcome
from ppdm_bench.commands.values import number_option

if TYPE_CHECKING:
    from ppdm_bench.gpu_suite.listing import SuitePiece
    from ppdm_bench.gpu_suite.running import Place
    from ppdm_bench.records import Record

NO_GPU = (
    "there is no CUDA device here, and every measurement of this command needs one. Run it on a machine with a GPU "
    "(docs/gpu.md explains how; a checkout is enough), list the pieces with --list, or try them with --device cpu"
)


def gpu(
    piece: Annotated[
        list[str] | None,
        typer.Option(help="Run only this piece, also if it is done; repeatable. Default: all that are not done."),
    ] = None,
    minutes: Annotated[
        float | None,
        number_option("minutes", "Stop before a piece that does not fit into this time; default: no limit."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Only list the pieces, estimates and states.")] = False,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="Device; cpu runs the pieces in miniature.")] = "cuda",
    out: Annotated[
        Path | None, typer.Option(help="Folder with one folder per piece; default: results/gpu, in miniature runs/gpu.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run everything that needs a GPU, in pieces of at most ten minutes. Run the same command again to continue."""
    folder = out or Path("runs/gpu" if device == "cpu" else "results/gpu")
    with redirect_stdout(sys.stderr):
        import torch

        from ppdm_bench.gpu_suite.listing import listing
        from ppdm_bench.gpu_suite.running import Place, in_order, state

        pieces = listing()
        place = Place(device, folder, quiet=json)
        wanted = _chosen_pieces(pieces, piece or [])
        if not show and device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(NO_GPU)
    if show:
        print(_list(wanted, state(place, pieces), device))
        return
    with locked_folder(folder):
        ended = _carry_out(wanted if piece else in_order(wanted, state(place, pieces)), place, minutes)
        code = _report(ended, folder, json)
    raise typer.Exit(code)


def _chosen_pieces(pieces: Sequence["SuitePiece"], names: Sequence[str]) -> list["SuitePiece"]:
    import difflib

    known = {piece.name: piece for piece in pieces}
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "--list shows all pieces"
            raise typer.BadParameter(f"there is no piece {name!r}; {hint}", param_hint="'--piece'")
    return [known[name] for name in dict.fromkeys(names)] if names else list(pieces)


def _list(pieces: Sequence["SuitePiece"], before: Mapping[str, "Record | None"], device: str) -> str:
    from ppdm_bench.gpu_suite.listing import CARD

    width = max(len(piece.name) for piece in pieces)
    states = {name: _state(record) for name, record in before.items()}
    longest = max(len(text) for text in states.values())
    lines = [
        f"{p.name:{width}}  {p.estimate(device) / 60:4.1f} min  {states[p.name]:{longest}}  {p.purpose}" for p in pieces
    ]
    machine = "tiny on two CPU cores" if device == "cpu" else f"on one {CARD}"
    left = sum(p.estimate(device) for p in pieces if states[p.name] != "done") / 60
    return "\n".join([*lines, f"Minutes are estimates {machine}; the pieces that are left take {left:.0f} min."])


def _state(record: "Record | None") -> str:
    if record is None:
        return "open"
    return {"ok": "done", "timeout": "begun"}.get(record.status, "failed")


def _carry_out(pieces: Sequence["SuitePiece"], place: "Place", minutes: float | None) -> list["Record"]:
    from ppdm_bench.gpu_suite.running import carry_out

    if not pieces:
        notify("all pieces are done; --piece repeats one")
    seconds = None if minutes is None else 60 * minutes

    def begin(piece: "SuitePiece") -> None:
        about = piece.estimate(place.device) / 60
        notify(f"{piece.name}, about {about:.1f} min: {piece.purpose}")

    ended = list(carry_out(pieces, place, seconds, begin))
    if left := pieces[len(ended) :]:
        need = f"{left[0].name} takes about {left[0].estimate(place.device) / 60:.1f} min"
        if not ended:
            raise RuntimeError(f"no piece fits into {minutes:g} minutes: {need}; increase --minutes")
        notify(f"stopped because the remaining time is too short: {need}; {len(left)} pieces are left")
    return ended


def _report(ended: Sequence["Record"], folder: Path, json: bool) -> int:
    """Print the results, report the state of each piece, and return the exit code."""
    from ppdm_bench.gpu_suite.running import PIECES
    from ppdm_bench.gpu_suite.summary import records_of, summarise
    from ppdm_bench.records import to_json_array

    text, written = summarise(folder)
    print(to_json_array([*records_of(folder), *ended]) if json else text, end="\n" if json else "")
    stream = sys.stderr if json else sys.stdout
    for record in ended:
        print(f"{record.options['piece']}: {record.status}, {record.value:.0f} s", file=stream)
    failed = [f"{record.options['piece']}: {record.reason}" for record in ended if record.status != "ok"]
    return report_outcome([folder / PIECES, *written], failed, stream)
