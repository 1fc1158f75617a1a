"""The command line: parses, makes one library call, prints, exits."""
from __future__ import annotations

import errno
import shlex
from typing import Any

import click

from ..artifacts.facts import own_version
from ..errors import DyvitError, did_you_mean
from ..machine.processes import in_group, leave_group
from . import deploy, measure, serve, show, train
from .terminal import TYPED, complain, shown_notes

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
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = error.filename or "that of the results, or of temporary files in TMPDIR"
            complain(f"The disk is full ({where}); free space, or choose a place on another disk.")
            ctx.exit(1)
        except MemoryError:
            complain("Not enough memory; use a smaller --batch or --images.")
            ctx.exit(1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
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
    # Also before a library reads ranks that another job left in the environment.
    if context.invoked_subcommand not in DISTRIBUTED or not in_group():
        leave_group()


for command in (train.train, deploy.export, deploy.build, deploy.refit, deploy.calibrate, deploy.sensitivity,
                deploy.quickstart, measure.evaluate, measure.check, measure.bench, measure.compare, measure.sweep,
                serve.predict, serve.serve, show.models, show.visualize, show.report, show.inspect, show.doctor):
    main.add_command(command)
