"""`multirnn doctor`: what is slowing this machine, each claim measured on the spot."""

from collections.abc import Iterator, Sequence

import click

from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json, table
from multirnn.tables import Content, Styled
from multirnn_bench.doctor import Finding, examine

__all__ = ["command"]

STYLES = {"slow": "bold red", "note": "yellow", "fine": "green", "unknown": "dim"}


@click.command(
    "doctor",
    epilog="""
    \b
    Examples:
      multirnn doctor
      multirnn doctor --json

    \b
    Exit status:
      0  nothing is slowing this machine; what is only noted is so on any
      1  something is, and it says what to do
      2  used wrongly, or could not run
    """,
)
@options.json_output
@options.debug
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Say what is slowing this machine, and what to do.

    Each check measures, in processes of its own, how fast this machine is and how fast it could be. This takes half a
    minute; nothing else should run meanwhile. Checks that find nothing are listed too.
    """
    with progress() as say:
        findings = examine(say)
    if as_json:
        show_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        show(*_report(findings))
    ctx.exit(1 if any(finding.status == "slow" for finding in findings) else 0)


def _report(findings: Sequence[Finding]) -> Iterator[Content]:
    made = table("", "what", "found")
    for finding in sorted(findings, key=lambda finding: list(STYLES).index(finding.status)):
        found = finding.says[:1].upper() + finding.says[1:] + "."
        if finding.remedy:
            found += f"\nWhat to do: {finding.remedy}"
        times = f" {finding.ratio:.1f}×" if finding.status in ("slow", "note") and finding.ratio else ""
        made.add_row(Styled(finding.status + times, STYLES[finding.status]), finding.check, found)
    slow = sum(finding.status == "slow" for finding in findings)
    yield heading(
        f"{slow} of {len(findings)} things are slowing this machine"
        if slow
        else "Nothing found that slows this machine"
    )
    yield made
