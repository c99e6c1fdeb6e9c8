"""Draw what a terminal shows after a session with xchat, as SVG in the file that is named.

The session is real: a shell in a terminal of tmux, with xchat on PATH and a server that answers.
"""

from __future__ import annotations

import html
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, HEIGHT = 84, 20
COMMANDS = [
    'cat article.txt | xchat -s "Summarize the text in one sentence." | fold -s',
    'xchat --schema "city, country" "Where is Rome?" | jq -r .country',
    "cat capitals.yaml",
    './capitals.yaml "And of Italy?"',
    'xchat --modle grok-4.7 "Hello"; echo "status $?"',
]


def tmux(*args: str) -> str:
    command = ["tmux", "-L", f"picture-{os.getpid()}", "-f", "/dev/null", *args]
    return subprocess.run(command, check=True, stdout=-1, text=True).stdout


def wait_for_prompt(number: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        lines = tmux("capture-pane", "-p").rstrip("\n").splitlines()
        prompts = [line for line in lines if line.startswith("$")]
        if len(prompts) == number and lines[-1].rstrip() == "$":
            return
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def play(commands: list[str]) -> str:
    """Type the commands, one after the other, and return what the terminal shows at the end."""
    size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
    tmux("new-session", "-d", *size, "env PS1='$ ' bash --norc --noprofile")
    try:
        for number, command in enumerate(commands, start=1):
            wait_for_prompt(number)
            tmux("send-keys", "-l", command)
            tmux("send-keys", "Enter")
        wait_for_prompt(len(commands) + 1)
        return tmux("capture-pane", "-p").rstrip("\n")
    finally:
        tmux("kill-server")


SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">
<style>
text {{ font: 16px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d8dee9 }}
.prompt {{ font-weight: bold; fill: #7ee787 }}
.command {{ font-weight: bold; fill: #ffffff }}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
{texts}
</svg>
"""
EM, LINE, MARGIN = 9.64, 22, 20  # the width of a character, the height of a line, in pixels


def draw_text(text: str, column: int, row: int, kind: str = "") -> str:
    """Draw a piece of a line; its length is set, as fonts differ, and its blanks are kept."""
    x, y, length = MARGIN + column * EM, MARGIN + row * LINE + 16, len(text) * EM
    place = f'x="{x:.1f}" y="{y}" textLength="{length:.1f}" xml:space="preserve"'
    style = f' class="{kind}"' if kind else ""
    return f"<text {place}{style}>{html.escape(text, quote=False)}</text>"


def draw(screen: str) -> str:
    """Return what a terminal shows as SVG, which fetches nothing from afar."""
    lines = screen.removesuffix("\n$").splitlines()
    assert max(map(len, lines)) < WIDTH, "a line is broken"
    texts = []
    for row, line in enumerate(lines):
        if line.startswith("$ "):
            texts.append(draw_text("$ ", 0, row, "prompt"))
            texts.append(draw_text(line[2:].rstrip(), 2, row, "command"))
        elif line:
            texts.append(draw_text(line.rstrip(), 0, row))
    width, height = round(2 * MARGIN + WIDTH * EM), 2 * MARGIN + len(lines) * LINE
    return SVG.format(width=width, height=height, texts="\n".join(texts))


def main() -> int:
    here, output = Path(__file__).parent, Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for name in ("article.txt", "capitals.yaml"):
            shutil.copy(here / name, name)
        output.write_text(draw(play(COMMANDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
