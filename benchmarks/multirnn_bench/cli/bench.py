"""`multirnn bench`: how fast each backend is, and how close to what this machine can do; verified first, then timed.

A group of commands; `run` may be left out: `multirnn bench smoke`.
"""

import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multirnn.cells import CELLS
from multirnn.cli import options
from multirnn.cli.console import heading, show, show_json, table
from multirnn.errors import InvalidData
from multirnn.protocol import MODES
from multirnn_bench import results
from multirnn_bench.cli.bar import progress_bar
from multirnn_bench.cli.rows import summary
from multirnn_bench.contenders import PEERS, find
from multirnn_bench.machine import allowed_cores
from multirnn_bench.problems import TABLES, Case, Problem, ProblemTable, read_table
from multirnn_bench.run import Progress, Run, settings

if TYPE_CHECKING:
    from multirnn_bench.limits import Limits

__all__ = ["command"]


class Bench(click.Group):
    """The commands; `run` unless another is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `run` before arguments that name no command."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    "bench",
    cls=Bench,
    epilog="""
    \b
    Examples:
      multirnn bench smoke
      multirnn bench standard --out a.jsonl
      multirnn bench --cell gru --hidden 256 --batch 32 --time 100
      multirnn bench compare a.jsonl b.jsonl
      multirnn bench report a.jsonl --html a.html

    \b
    Exit status:
      0  every contender that ran is the same function
      1  one is wrong; with compare: one became slower
      2  used wrongly, or one failed, was killed, or could not run
      3  a backend named with --backend is missing or refuses everything
    """,
)
@options.debug
def command() -> None:
    """Time every backend, verified first and side by side.

    Without the name of a command it runs a benchmark: `multirnn bench run --help` has the options.
    """


def _threads(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"numbers of threads with commas between them, as in 1,2, not {value!r}")
    numbers = tuple(dict.fromkeys(map(int, parts)))
    if (most := max(numbers)) > (cores := len(allowed_cores())):
        raise click.BadParameter(f"{most} threads need as many cores, and this process may run on {cores}")
    return numbers


def _two_numbers(value: str, separator: str, wanted: str) -> tuple[int, int]:
    match = re.fullmatch(rf"(\d+){separator}(\d+)", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{wanted}, not {value!r}")
    return int(match[1]), int(match[2])


def _part(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    number, count = _two_numbers(value, "/", "a part is N/M, as in 3/10")
    if not 1 <= number <= count:
        raise click.BadParameter(f"the parts of {count} are 1/{count} to {count}/{count}, not {value}")
    return number, count


def _lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    return None if value is None else _two_numbers(value, "-", "the shortest and the longest row, as in 10-100")


PATH = click.Path(path_type=Path)
_repeatable = partial(click.option, multiple=True)


@command.command(
    "run",
    epilog="""
    \b
    Tables:
      smoke      six shapes on one thread, in two minutes or less
      standard   33 shapes with one and two threads, under 20 minutes
      deepbench  the 125 recurrent problems of Baidu DeepBench; hours, so run it in parts
      FILE.csv   your own: a header with cell, batch, time, hidden_size, and what other
                 fields you need (input_size, num_layers, modes, …), then a row a problem

    \b
    DeepBench times the recurrence without the input projection. No layer is without one, so
    those problems have an input of one feature, which costs 1/H of the recurrence.
    """,
)
@click.argument("name", metavar="[TABLE]", required=False)
@click.option("--cell", type=click.Choice(list(CELLS)), help="Instead of a table: one problem, described by options.")
@click.option("--hidden", "hidden_size", type=options.POSITIVE, metavar="N", help="Units of each layer and direction.")
@click.option(
    "--input", "input_size", type=options.POSITIVE, metavar="N", help="Features of the input.  [default: as --hidden]"
)
@click.option("--batch", type=options.POSITIVE, metavar="N", default=1, show_default=True, help="Rows of the input.")
@click.option("--time", type=options.POSITIVE, metavar="N", default=100, show_default=True, help="Steps of the input.")
@click.option("--lengths", metavar="N-M", callback=_lengths, help="Rows of N to M steps.  [default: all full]")
@options.stack
@_repeatable("--problem", "problems", metavar="NAME", help="Only this problem; * and ? match; repeatable.")
@click.option("--part", metavar="N/M", callback=_part, help="Only the Nth of M parts of the table.")
@_repeatable(
    "--mode",
    "modes",
    type=click.Choice(MODES),
    help="Run each problem in this mode; repeatable.  [default: the table's]",
)
@click.option(
    "--threads", metavar="N,…", callback=_threads, help="Numbers of threads, each a row.  [default: the table's]"
)
@options.backends
@_repeatable(
    "--peers",
    type=PATH,
    metavar="FOLDER",
    help="More peers: Python files with CONTENDERS; repeatable. Without --backend those that ship run too.",
)
@_repeatable("--contender", "contenders", metavar="NAME", help="Only this one; * and ? match; repeatable.")
@click.option("--out", type=PATH, metavar="FILE", help="Where rows go.  [default: named by the time]")
@click.option("--resume", is_flag=True, help="Continue the file of --out: only missing rows are run.")
@click.option(
    "--disturbed",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="With --resume: run problems again that lost "
    "more than this share of the cores to the hypervisor; the calmer time counts.",
)
@click.option("--minutes", type=click.FloatRange(min=0), help="Cut rounds to fit.  [default: the table's]")
@click.option("--cap", type=click.FloatRange(0, min_open=True), help="Seconds until a silent contender is given up.")
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="Of weights, inputs, order."
)
@options.json_output
@options.debug
@click.pass_context
def run_table(
    ctx: click.Context,
    /,
    name: str | None,
    cell: str | None,
    problems: tuple[str, ...],
    part: tuple[int, int] | None,
    modes: tuple[str, ...],
    threads: tuple[int, ...],
    names: tuple[str, ...],
    peers: tuple[Path, ...],
    contenders: tuple[str, ...],
    out: Path | None,
    resume: bool,
    disturbed: float | None,
    minutes: float | None,
    cap: float | None,
    seed: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Run a table of problems on every backend and peer, each contender in its own process.

    Each answer is compared with the float64 reference first; a wrong one is shown as wrong, without a time. The right
    ones are timed in turns, in a shuffled order. Rows are written as they come: Ctrl-C loses none.
    """
    from multirnn_bench.limits import measure_again

    if resume and out is None:
        raise click.UsageError("--resume goes on with a file: name it with --out.")
    if disturbed is not None and not resume:
        raise click.UsageError("--disturbed runs a part of a file again: give --resume too.")
    chosen = _table(ctx, name, cell, given).only(names=problems, modes=modes, part=part)
    if minutes is not None:
        chosen = replace(chosen, seconds=60 * minutes)
    if cap is not None:
        chosen = replace(chosen, cap=cap)
    cores = len(allowed_cores())
    threads = threads or tuple(n for n in chosen.threads if n <= cores)
    if not names and PEERS is not None and PEERS not in [folder.resolve() for folder in peers]:
        peers = PEERS, *peers
    sources = find(options.chosen(names), peers, contenders)
    out = out or Path(f"multirnn-{Path(chosen.name).stem}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    with results.Writer(out, resume=resume) as writer, progress_bar() as tell:
        header, limits = _header(chosen, threads, seed, writer.found, tell)
        writer.begin(header)
        with Run(
            chosen,
            sources,
            threads,
            writer,
            limits,
            seed=seed,
            measure=measure_again,
            again=float("inf") if disturbed is None else disturbed,
            tell=tell,
        ) as running:
            try:
                # SIGTERM ends the contenders too: one that compiles would go on for minutes.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                running()
            except KeyboardInterrupt:
                click.echo(f"interrupted: {writer.saved} rows are in {out}, and --resume goes on with them", err=True)
                raise click.exceptions.Exit(130) from None
    found = results.read(out)
    ours = {source.name for source in sources if source.kind == "ours"}
    status = _status(found.rows, names, [why for name, why in running.missing.items() if name in ours])
    if as_json:
        show_json({"ok": status == 0, "file": str(out), "missing": running.missing, **vars(found)})
    else:
        show(*summary(found, out, running.missing))
    ctx.exit(status)


def _table(ctx: click.Context, name: str | None, cell: str | None, given: dict[str, Any]) -> ProblemTable:
    """The named table, or the problem that the options describe."""
    default = click.core.ParameterSource.DEFAULT
    described = [field for field in given if ctx.get_parameter_source(field) is not default]
    if cell is None:
        if described:
            option = next(one.opts[0] for one in ctx.command.params if one.name == described[0])
            raise click.UsageError(f"{option} describes a problem of your own: give its --cell too.")
        return _named_table(name or "smoke")
    if name is not None:
        raise click.UsageError(f"a table ({name}) and a problem of your own (--cell) are two runs: leave one out.")
    if given["hidden_size"] is None:
        raise click.UsageError("--cell describes a problem of your own: give its --hidden too.")
    given["input_size"] = given["input_size"] or given["hidden_size"]
    problem = Problem.shaped(cell, **given)
    return ProblemTable("own", (Case(problem, ("inference",)),))


def _named_table(name: str) -> ProblemTable:
    if name in TABLES:
        return TABLES[name]()
    if name.endswith(".csv"):
        return read_table(name)
    raise click.UsageError(f"no table {name!r}: there are {', '.join(TABLES)}, or the name of a .csv file.")


def _header(
    chosen: ProblemTable,
    threads: Sequence[int],
    seed: int,
    resumed: results.Results | None,
    tell: Callable[[Progress], None],
) -> tuple[dict[str, Any], "Limits"]:
    """The header of the file, and the limits: of a resumed file, or measured now."""
    from multirnn_bench.limits import Limits, measure
    from multirnn_bench.machine import activity, describe

    if resumed is not None:
        limits = Limits.from_dict(resumed.header["limits"])
    else:
        tell(Progress(0, 1, "measuring what this machine can do"))
        limits = measure(*threads, dtypes=sorted({case.problem.spec.dtype for case in chosen.cases}))
    header = {
        "table": chosen.name,
        "machine": describe(),
        "activity": activity(),
        "limits": limits.to_dict(),
        "settings": settings(chosen, threads, seed),
    }
    return header, limits


def _status(rows: Sequence[dict[str, Any]], names: tuple[str, ...], missing: Sequence[str]) -> int:
    """The exit status; backends that were named and did not run are reported on stderr."""
    for reason in dict.fromkeys(missing if names else ()):
        click.echo(f"Error: {reason}", err=True)
    statuses = {row["status"] for row in rows}
    if "wrong" in statuses:
        return 1
    if statuses & {"failed", "killed"}:
        return 2
    found = {(row["contender"]["name"].split()[0], row["status"]) for row in rows if row["contender"]["kind"] == "ours"}
    refusing = [name for name in names if {status for of, status in found if of == name} == {"refused"}]
    for name in refusing:
        click.echo(f"Error: backend {name!r} refuses every problem", err=True)
    return 3 if refusing or (names and missing) else 0


# --- Results ---------------------------------------------------------------------------------------


@command.command("list")
@click.argument("name", metavar="[TABLE]", required=False)
@options.json_output
@options.debug
def list_problems(name: str | None, as_json: bool) -> None:
    """Show the problems of a table, or of all."""
    found = [_named_table(one) for one in ([name] if name else TABLES)]
    if as_json:
        show_json(
            {one.name: [{"problem": e.problem.to_dict(), "modes": list(e.modes)} for e in one.cases] for one in found}
        )
        return
    for one in found:
        columns = ("batch", "time", "input", "hidden")
        made = table("problem", "cell", *columns, "modes", right=columns)
        for case in one.cases:
            problem = case.problem
            sizes = (problem.batch, problem.time, problem.spec.input_size, problem.spec.hidden_size)
            made.add_row(problem.name, problem.spec.cell, *map(str, sizes), " ".join(case.modes))
        show(heading(one.name), "", made, "")


@command.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--threshold",
    type=click.FloatRange(min=1),
    default=1.05,
    show_default=True,
    help="Factor by which a time may grow before it counts as slower.",
)
@options.json_output
@options.debug
@click.pass_context
def compare_files(ctx: click.Context, /, a: Path, b: Path, threshold: float, as_json: bool) -> None:
    """Compare results A with results B; exit 1 if anything became slower."""
    from multirnn_bench.statistics import compare_results

    found = compare_results(results.read(a), results.read(b), threshold=threshold)
    if not found.changes:
        raise InvalidData(f"{a} and {b} have no row in common: the same contender, problem, mode and number of threads")
    if as_json:
        show_json(found.to_dict())
    else:
        show(str(found))
    ctx.exit(1 if found.regressed else 0)


@command.command("report")
@click.argument("file", type=PATH)
@click.option("--html", "page", type=PATH, metavar="FILE", help="Write one self-contained page.")
@click.option("--markdown", type=PATH, metavar="FILE", help="Write tables in Markdown.")
@options.debug
def write_report(file: Path, page: Path | None, markdown: Path | None) -> None:
    """Make a report of results: a page with charts, or tables in Markdown, on stdout unless a file is named."""
    from multirnn_bench.page import html
    from multirnn_bench.report import markdown as tables

    found = results.read(file)
    if page is None and markdown is None:
        click.echo(tables(found))
    for path, make in ((page, html), (markdown, tables)):
        if path is not None:
            try:
                path.write_text(make(found), encoding="utf-8")
            except OSError as error:
                raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
            click.echo(f"written: {path}", err=True)
