"""Terminals as pictures in the documentation: made, and read again to be held against what is printed.

    python tests/terminals.py [WORD OF A NAME]

makes them anew; look at them before you keep them.  Each command runs in a terminal of its own, with colours.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/images"
WIDTHS = (80, 120)
CALL = "sd15 --gpu rtx-3070 --budget 8GB --width 3840 --height 2224 --steps 20"
COMMANDS = {
    "plan": f"vram-planner plan {CALL}",
    "compare": "vram-planner compare sd15 --width 3840 --height 2224 --steps 20 --gpu rtx-3070 --gpu rtx-3090 "
    "--gpu rtx-4090 --price 0.3",
    "explain": f"vram-planner explain {CALL}",
    "frontier": "vram-planner frontier sd15 --gpu rtx-3070 --steps 20",
}
FONTS = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
FORM = f"""\
<svg class="rich-terminal" viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg">
<style>
.{{unique_id}}-matrix {{{{ font-family: {FONTS}; font-size: {{char_height}}px; line-height: {{line_height}}px; }}}}
.{{unique_id}}-title {{{{ font-family: sans-serif; font-size: 16px; }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal"><rect width="{{terminal_width}}" height="{{terminal_height}}" /></clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""
"""As rich writes it, but for fonts that would be fetched."""
LETTERS = re.compile(r'<text class="[\w-]+-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>')


def named(name: str, columns: int) -> Path:
    return IMAGES / f"terminal-{name}-{columns}.svg"


def seen(command: str, columns: int, cache: Path) -> str:
    """What a terminal of so many columns gets to see, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    env = kept | {"TERM": "xterm-256color", "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "planner", *shlex.split(command)[1:]]
    running = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=env)
    os.close(theirs)
    told = b""
    while more := _read(ours):
        told += more
    os.close(ours)
    assert running.wait() == 0, command
    return told.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux ends a terminal so
        return b""


def picture(command: str, told: str, columns: int) -> str:
    """The terminal as SVG, below the command that was typed."""
    page = Console(record=True, width=columns, file=Path(os.devnull).open("w"), legacy_windows=False)  # noqa: SIM115
    page.print(Text(f"$ {command}", style="bold"), soft_wrap=False)
    page.print(Text.from_ansi(told), soft_wrap=False)
    return page.export_svg(
        title=f"{columns} columns", theme=SVG_EXPORT_THEME, code_format=FORM, unique_id=f"terminal{columns}"
    )


def words(drawn: str) -> str:
    """What is written in such a picture, line by line; spaces are not as they were."""
    lines: dict[float, list[tuple[float, str]]] = defaultdict(list)
    for x, y, text in LETTERS.findall(drawn):
        lines[float(y)].append((float(x), html.unescape(text).replace("\xa0", " ")))
    return "\n".join(" ".join(text for _, text in sorted(lines[y])) for y in sorted(lines))


if __name__ == "__main__":
    wanted = (sys.argv[1:] or [""])[0]
    for name, command in COMMANDS.items():
        for columns in WIDTHS:
            if wanted in name:
                told = seen(command, columns, Path(tempfile.gettempdir(), "vram-planner-sessions"))
                named(name, columns).write_text(picture(command, told, columns), "utf-8")
