"""The group of commands, and what they share: one line per error, exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from sdkit import __version__
from sdkit.errors import PluginError, SdkitError, UnknownComponent
from sdkit.plugins import Entry, registry
from sdkit.plugins.component import describe

__all__ = ["cli", "main"]


class Commands(click.Group):
    """The built-in commands, and those that plugins add (components of the kind ``command``).

    A built-in name wins. A plugin's command is imported when it is used, so one that is broken breaks no other, and
    help takes no longer for it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Built-in names in the order of the alphabet, then those of plugins."""
        return [*super().list_commands(ctx), *self._added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None.

        Raises:
            PluginError: a plugin's command cannot be imported, or is none.
            AmbiguousComponent: two plugins have one of that name.
        """
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        try:
            entry = registry().find("command", cmd_name)
        except UnknownComponent:
            return None
        loaded: object = entry.component.load()
        if not isinstance(loaded, click.Command):
            raise PluginError(f"The command {entry.full_name} is a {type(loaded).__name__}, not a click command.")
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Built-in commands with their first sentence, and plugins' with their components' summaries."""
        super_names = super().list_commands(ctx)
        rows = [(name, self.commands[name].get_short_help_str(90)) for name in super_names]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        added = self._added()
        if added:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, entry.component.summary) for name, entry in added.items()])

    def _added(self) -> dict[str, Entry]:
        """Plugins' commands by the name to type: the short one, unless two plugins have it."""
        entries = registry().entries("command")
        shorts = [entry.component.name for entry in entries]
        names = {entry: entry.component.name for entry in entries if entry.component.name not in self.commands}
        return {(short if shorts.count(short) == 1 else entry.full_name): entry for entry, short in names.items()}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sdkit")
def cli() -> None:
    r"""Stable Diffusion: pictures from text, on your own machine.

    \b
    sdkit generate "a fox, 3d style" --out fox.png
    sdkit rerun fox.png
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a wrong input ends it with one line on stderr and exit code 2."""
    from sdkit.cli import animate, conform, generate, licence, listing, new_plugin, plot

    for command in (
        animate.animate,
        animate.contact_sheet,
        generate.generate,
        generate.rerun,
        listing.plugins,
        listing.schedulers,
        listing.models,
        licence.licence,
        conform.conform,
        new_plugin.new_plugin,
        plot.bench_schedulers,
        plot.plot_grids,
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
