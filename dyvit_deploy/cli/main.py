"""The command line: parses, makes one library call, prints, exits."""
from __future__ import annotations

import errno
import os
import shlex
from typing import Any

import click

from ..artifacts.facts import own_version
from ..errors import ArtifactError, DyvitError, did_you_mean, is_out_of_memory, reason
from ..machine.processes import in_group, leave_group
from . import deploy, measure, serve, show, train
from .terminal import TYPED, accept_any_text, ask_for_report, complain, shown_notes

# The commands whose work torchrun can spread over processes.
DISTRIBUTED = ("train", "eval")


class Commands(click.Group):
    """Turns known errors into one sentence and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with shown_notes():
                return super().invoke(ctx)
        except DyvitError as error:
            complain(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            complain("interrupted")
            ctx.exit(130)
        except (MemoryError, ImportError, RuntimeError, OSError) as error:
            if is_out_of_memory(error):
                complain(self._memory_advice(ctx, error))
            elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                where = error.filename or "that of the results, or of temporary files in TMPDIR"
                complain(f"The disk is full ({where}); free space, or choose a place on another disk.")
            else:
                raise
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        # Nobody foresaw it, so it is a mistake in this program: its traceback is shown, as Python does.
        except Exception:
            ask_for_report()
            raise

    def _memory_advice(self, ctx: click.Context, error: Exception) -> str:
        """A sentence about too little memory; it names --batch only where a batch may be the cause."""
        what = f"({reason(error)})" if str(error) else ""
        if isinstance(error, ImportError):
            return f"Not enough memory to load a library {what}; close other programs, or raise the limit (ulimit -v)."
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        options = {option for parameter in command.params for option in parameter.opts} if command else set()
        smaller = "lower --batch if it is large, or " if "--batch" in options else ""
        return " ".join(filter(None, ("Not enough memory", what))) + f"; {smaller}close other programs."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # An empty path would be the current directory.
        for number, argument in enumerate(args, 1):
            if not argument or (argument.startswith("--") and argument.endswith("=")):
                ctx.fail(f"Argument {number} is empty ({argument!r}), perhaps by a variable that is not set; give it a "
                         "value, or leave it out.")
        # Before click consumes the list.
        ctx.meta[TYPED] = shlex.join(["dyvit", *args])
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No command {args[0]!r}.{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(own_version(), prog_name="dyvit")
@click.pass_context
def main(context: click.Context) -> None:
    """DynamicViT from checkpoint to production: train, export, check, bench."""
    accept_any_text()
    try:
        os.getcwd()
    except OSError as error:
        raise ArtifactError("The current directory does not exist any more, which libraries do not take; change to "
                            "another one.") from error
    # Also before a library reads ranks that another job left in the environment.
    if context.invoked_subcommand not in DISTRIBUTED or not in_group():
        leave_group()


for command in (train.train, deploy.export, deploy.build, deploy.refit, deploy.calibrate, deploy.sensitivity,
                deploy.quickstart, measure.evaluate, measure.check, measure.bench, measure.compare, measure.sweep,
                serve.predict, serve.serve, show.models, show.visualize, show.report, show.inspect, show.doctor):
    main.add_command(command)
