"""The command line, kept thin: every option is a parameter of a function elsewhere."""

import errno
import sys
from os.path import exists
from typing import Annotated

import typer

from ddfm import __version__
from ddfm.cli import batch, fuse, measure, prior
from ddfm.cli.console import err, plain
from ddfm.cli.options import Prior, with_reading, with_settings
from ddfm.errors import InputError, out_of_memory
from ddfm.io.files import reason

app = typer.Typer(
    help="Fuse images from several sensors by posterior sampling with a diffusion prior (DDFM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script; exits with one sentence and 2 for bad input, with 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # escape names that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="ddfm", standalone_mode=False)  # typer.Exit's code; newer typer gives 130 for Ctrl-C
    except InputError as error:
        _fail(plain(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: a wrong option or argument
            if not error.format_message():  # no arguments: help was printed
                sys.exit(2)
            names = [f"; write the file {text} as ./{text}" for text in sys.argv if text[:1] == "-" and exists(text)]
            _fail(f"{plain(error.format_message())} (see ddfm --help{plain(''.join(names[:1]))})")
        if sentence := out_of_memory(error):
            _fail(sentence)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # for a temporary file or a log
            _fail(f"{reason(error).capitalize()}.")
        raise
    if code == 130:
        err.print("interrupted")
    sys.exit(code)


def _fail(sentence: str) -> None:
    err.quiet = False  # --quiet and --json suppress everything but errors
    err.print(f"[bold red]error:[/] {sentence}", soft_wrap=True, highlight=False)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"ddfm {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(with_settings(with_reading(fuse.fuse)))
app.command()(fuse.register)
app.command()(with_settings(with_reading(batch.batch)))
app.command()(fuse.demo)
app.command()(measure.evaluate)
app.command()(with_settings(measure.bench))


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; the default is local only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    prior: Prior = "embedded",
    device: Annotated[list[str], typer.Option(help="cpu, cuda:0, ...; repeat for one worker each.")] = [],  # noqa: B006
    token: Annotated[str | None, typer.Option(envvar="DDFM_TOKEN", help="Bearer token that clients must send.")] = None,
    cors: Annotated[list[str], typer.Option(help="Other origin whose pages may call the API.")] = [],  # noqa: B006
) -> None:
    r"""Serve the web page and the HTTP API (needs `pip install ddfm\[server]`).

    Example: ddfm serve --port 8000
    """
    from ddfm.server import serve as run_server

    run_server(host, port, prior=prior, devices=device, token=token, origins=cors)


app.add_typer(prior.app, name="prior")
