"""Tab completion of settings in bash: ``eval "$(alexnet2012 completion)"``.

Works after ``alexnet2012 COMMAND`` and ``python -m alexnet2012.COMMAND``. Hydra's own completion
does not know ``python -m``, and would import torch at each key press.
"""

from __future__ import annotations

import sys

from hydra import initialize_config_module
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra

from alexnet2012.cli.registry import COMMANDS
from alexnet2012.config.compose import CONF, register_schema

# bash takes `=` for the end of a word, so only what follows it is replaced. Where nothing is found,
# and for every other program of Python, it completes names of files.
SCRIPT = """\
_alexnet2012() {
    local line=${COMP_LINE:0:COMP_POINT} command name at
    if [[ ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == alexnet2012.* ]]; then
        command=("$1" -m alexnet2012.completion) name=${COMP_WORDS[2]} at=2
        ((COMP_CWORD == at)) && mapfile -t COMPREPLY < <(compgen -S ' ' -W "MODULES" -- "$name")
    elif [[ ${COMP_WORDS[0]##*/} == alexnet2012 ]]; then
        command=("$1" completion) name=${COMP_WORDS[1]} at=1
        ((COMP_CWORD == at)) && mapfile -t COMPREPLY < <(compgen -S ' ' -W "NAMES" -- "$name")
    else
        return
    fi
    ((COMP_CWORD > at)) || return
    mapfile -t COMPREPLY < <("${command[@]}" "${name#alexnet2012.}" "${line#*"$name"}")
    local word=${line##* }
    [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
}
complete -o nospace -o default -F _alexnet2012 python python3 alexnet2012
"""


def script() -> str:
    modules = " ".join(command.module for command in COMMANDS.values())
    return SCRIPT.replace("MODULES", modules).replace("NAMES", " ".join(COMMANDS))


def completions(name: str, line: str) -> list[str]:
    """What the last word of ``line`` may become, after the words before it."""
    command = COMMANDS.get(name)
    if command is None or command.schema is None:
        return []
    *before, last = line.split(" ")
    words = [*(word for word in before if "=" in word), last]
    register_schema(command.config, command.schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        bash = BashCompletion(GlobalHydra.instance().config_loader())
        try:
            return bash._query(command.config, " ".join(words))
        except Exception:  # a word before it is wrong
            return []


def main() -> None:
    words = sys.argv[1:]
    if not words:
        sys.stdout.write(script())
    elif len(words) == 2:
        sys.stdout.writelines(f"{word}\n" for word in completions(*words))
    elif {"-h", "--help"} & {*words}:
        sys.stdout.write(f"{__doc__}")
    else:
        sys.stderr.write(f"alexnet2012: {' '.join(words)}: completion takes no words; see --help\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
