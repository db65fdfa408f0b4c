"""The command line: `multirnn COMMAND`. One file per command, imported on use.

Data goes to stdout, progress and errors to stderr. The exit status is as for `diff`, and `multirnn --help` lists it; it
is also 3 if matplotlib is missing for a picture, 130 if interrupted, and 141 if the reader of the output has closed the pipe.
"""

import os
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from multirnn import __version__
from multirnn.cli import options
from multirnn.errors import MissingFramework, MultirnnError, Unsupported

__all__ = ["main"]

# The first sentence of each help is repeated here: reading it from the command would import NumPy.
COMMANDS = {
    "backends": "Show what is installed, and what each backend refuses.",
    "summary": "Show layers, output shapes and parameters.",
    "explain": "Say why frameworks count differently, and which array is which.",
    "compare": "Hold every backend against the reference, on real data.",
    "diagnose": "Name the mistake that makes two layers differ.",
    "inspect": "Show the recurrent stacks in a file.",
    "verify": "Say whether the recurrent layers of two files are the same function.",
    "convert": "Write the recurrent layers of a file in another format.",
    "bench": "Time every backend, verified first and side by side.",
    "doctor": "Say what is slowing this machine, and what to do.",
}
PACKAGES = {"bench": "multirnn_bench", "doctor": "multirnn_bench"}  # found by name: multirnn imports no benchmark


class Failure(click.ClickException):
    """An error as a sentence: the command could not run."""

    exit_code = 2


class Refusal(Failure):
    """Something requested is missing or refuses."""

    exit_code = 3


class Commands(click.Group):
    """The commands by name; their exceptions become sentences and exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names in reading order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name."""
        if cmd_name not in COMMANDS:
            return None
        package = PACKAGES.get(cmd_name, "multirnn")
        if find_spec(package) is None:
            raise MissingFramework(
                f"'multirnn {cmd_name}' needs the package {package!r}, which is not installed: install multirnn again, "
                "its wheel has it"
            )
        command: click.Command = import_module(f"{package}.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an exception becomes a sentence and an exit status."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except BrokenPipeError:
            # Without this, the interpreter would flush the rest of the buffer at exit and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(141) from None  # status of a program killed by SIGPIPE
        except Exception as error:
            if options.wants_traceback(ctx):
                traceback.print_exc()
            raise _explained(error) from error


def _explained(error: Exception) -> Failure:
    """Our errors keep their sentence; any other gets its type and a hint at --debug."""
    if isinstance(error, MissingFramework | Unsupported):
        return Refusal(str(error))
    if isinstance(error, MultirnnError):
        return Failure(str(error))
    return Failure(f"{type(error).__name__}: {error} (--debug shows where)")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Examples:
      multirnn compare --plot errors.png
      multirnn diagnose numpy torch --cell gru --hidden 8 --mistake "gates z r n"
      multirnn inspect checkpoint.pt
      multirnn verify model.pt model.onnx
      multirnn convert model.pt model.keras --verify
      multirnn explain --cell simple_rnn --input 10 --hidden 3
      multirnn summary --cell lstm --input 10 --hidden 3 --layers 2

    \b
    Exit status:
      0  it holds
      1  a difference was found
      2  used wrongly, or could not run
      3  a backend that was asked for is missing or refuses
    """,
)
@click.version_option(__version__, prog_name="multirnn", message="%(prog)s %(version)s")
@options.debug
def main() -> None:
    """One recurrent layer on NumPy, PyTorch, Keras, JAX and ONNX Runtime, proven the same function."""
