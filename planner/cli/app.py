"""`vram-planner app`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.errors import BadRequest


@click.command("app")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The first free one from 7860 on, if left out.")
@click.option("--open", "browser", is_flag=True, help="Open it in the browser, too.")
def command(*, host: str, port: int | None, browser: bool) -> None:
    """Serve a page that plans: choose a model, a card and a budget.

    It needs no GPU and fetches nothing; Ctrl-C ends it.  For the packages it
    needs: pip install 'vram-planner[app]'.
    """
    try:
        from planner.web import page
    except ModuleNotFoundError as error:
        raise BadRequest(f"The page needs {error.name}; run pip install 'vram-planner[app]'.") from error
    from planner.web.desk import Desk
    from planner.web.form import Form

    with output.silence():
        served = page.serve(Desk(), Form(), host=host, port=port, browser=browser)
        click.echo(f"The planner is at {served.local_url}; Ctrl-C ends it.")
        served.block_thread()
