"""Draw what a terminal shows after a session with xchat, as SVG in the file that is named.

The session is real: a shell in a terminal of tmux, with xchat on PATH and a server that answers.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, HEIGHT = 84, 21
COMMANDS = [
    'cat article.txt | xchat -s "Summarize the text in one sentence."',
    "cp capitals.yaml chat.yaml",
    'xchat -af chat.yaml "And of Italy?"',
    'xchat -af chat.yaml -u "And of Spain?"',
    "tail -n 2 chat.yaml",
    'xchat --modle grok-4 "Hello"; echo $?',
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
    shell = r"env PS1='\[\e[1m\]$\[\e[0m\] ' bash --norc --noprofile"
    tmux("new-session", "-d", *size, shell)
    try:
        for number, command in enumerate(commands, start=1):
            wait_for_prompt(number)
            tmux("send-keys", "-l", command)
            tmux("send-keys", "Enter")
        wait_for_prompt(len(commands) + 1)
        return tmux("capture-pane", "-ep").rstrip("\n")
    finally:
        tmux("kill-server")


def draw(text: str) -> str:
    """Return the text of a terminal as SVG, without the fonts that rich would fetch from afar."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.from_ansi(text))
    svg = console.export_svg(title="xchat", unique_id="xchat")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def main() -> int:
    here, output = Path(__file__).parent, Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for name in ("article.txt", "capitals.yaml"):
            Path(name).write_text((here / name).read_text())
        output.write_text(draw(play(COMMANDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
