"""The group of commands, and what they share: one line per error, exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from sdkit import __version__
from sdkit.errors import SdkitError
from sdkit.plugins.component import describe

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sdkit")
def cli() -> None:
    r"""Stable Diffusion: pictures from text, on your own machine.

    \b
    sdkit generate "a fox, 3d style" --out fox.png
    sdkit rerun fox.png
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a wrong input ends it with one line on stderr and exit code 2."""
    from sdkit.cli import conform, generate, listing, new_plugin

    for command in (
        generate.generate,
        generate.rerun,
        listing.plugins,
        listing.schedulers,
        listing.models,
        conform.conform,
        new_plugin.new_plugin,
    ):
        cli.add_command(command)
    try:
        code: Any = cli.main(arguments, prog_name="sdkit", standalone_mode=False)
    except click.exceptions.Abort:
        fail("stopped.", code=130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        raise SystemExit(0) from None
    except click.UsageError as error:
        context = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        fail(_one_line(error.format_message()) + context)
    except click.ClickException as error:
        fail(_one_line(error.format_message()))
    except SdkitError as error:
        fail("; ".join([_one_line(str(error)), *getattr(error, "__notes__", ())]))
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; that is its right.
        sys.stderr.close()
        raise SystemExit(141) from None
    except Exception as error:
        # a plugin's mistake, or ours: one line for people, everything for those who look for it
        if os.environ.get("SDKIT_DEBUG", "") not in ("", "0"):
            raise
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        fail(f"{describe(error)}{notes} (SDKIT_DEBUG=1 shows where)", code=1)
    raise SystemExit(code if isinstance(code, int) else 0)


def fail(message: str, *, code: int = 2) -> None:
    """One line on stderr, and out."""
    click.echo(f"Error: {message}", err=True)
    raise SystemExit(code)


def _one_line(text: str) -> str:
    return " ".join(text.split())
