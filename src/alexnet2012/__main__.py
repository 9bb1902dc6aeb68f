"""``alexnet2012 COMMAND …`` is ``python -m alexnet2012.COMMAND …``; alone it lists the commands."""

from __future__ import annotations

import sys
from importlib.metadata import version

from alexnet2012.cli.args import closest
from alexnet2012.cli.registry import COMMANDS
from alexnet2012.utils.environment import running_commit
from alexnet2012.utils.interrupt import end_at_once_on_sigint


def listing() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command.name:{width}}  {command.summary}" for command in COMMANDS.values()]
    head = "usage: alexnet2012 COMMAND [SETTING=VALUE …]\n"
    return "\n".join([head, *lines, "\nalexnet2012 COMMAND --help lists a command's settings.\n"])


def _checkout() -> str:
    commit, dirty = running_commit()
    if commit.startswith("version"):
        return ""
    return f" (commit {commit}{', with uncommitted changes' if dirty else ''})"


def main() -> None:
    """Run the command that the first word names."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(listing())
    elif name == "--version":
        sys.stdout.write(f"alexnet2012 {version('alexnet2012')}{_checkout()}\n")
    elif name in COMMANDS:
        sys.argv = [f"alexnet2012 {name}", *words]
        end_at_once_on_sigint()  # while the command is imported; it handles later ones itself
        COMMANDS[name].main()
    else:
        remedy = f"no such command{closest(name, COMMANDS)}; see alexnet2012 --help"
        sys.stderr.write(f"alexnet2012: {name}: {remedy}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
