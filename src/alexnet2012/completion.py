"""Tab completion of settings in bash: ``eval "$(python -m alexnet2012.completion)"``.

Hydra's own knows no ``python -m``, and would load torch at each key. Its answers are what is shown.
"""

from __future__ import annotations

import sys

from hydra import initialize_config_module
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from alexnet2012.config import inference_schema, schema
from alexnet2012.config.compose import CONF

SCHEMAS: dict[str, type] = {
    "train": schema.TrainConfig,
    "prepare": schema.PrepareConfig,
    "evaluate": schema.EvaluateConfig,
    "plan": schema.PlanConfig,
    "reproduce": schema.ReproduceConfig,
    "predict": inference_schema.PredictConfig,
    "serve": inference_schema.ServeConfig,
    "export": inference_schema.ExportConfig,
    "import_net": inference_schema.ImportConfig,
    "features": inference_schema.FeaturesConfig,
    "nearest": inference_schema.NearestConfig,
}
LIKE_TRAIN = "doctor"  # takes the same settings
# bash takes `=` for the end of a word, so only what follows it is replaced. Where nothing is found,
# and for every other program of Python, it completes names of files.
SCRIPT = """\
_alexnet2012() {
    local program=${COMP_WORDS[2]} line=${COMP_LINE:0:COMP_POINT}
    [[ ${COMP_WORDS[1]} == -m && $program == alexnet2012.* ]] || return
    if ((COMP_CWORD == 2)); then
        mapfile -t COMPREPLY < <(compgen -S ' ' -W "PROGRAMS" -- "$program")
        return
    fi
    mapfile -t COMPREPLY < <("$1" -m alexnet2012.completion "${program#*.}" "${line#*"$program"}")
    local word=${line##* }
    [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
}
complete -o nospace -o default -F _alexnet2012 python python3
"""


def script() -> str:
    programs = (f"alexnet2012.{name}" for name in (*SCHEMAS, LIKE_TRAIN))
    return SCRIPT.replace("PROGRAMS", " ".join(programs))


def completions(name: str, line: str) -> list[str]:
    """What the last word of ``line`` may become, after the words before it."""
    name = "train" if name == LIKE_TRAIN else name
    if name not in SCHEMAS:
        return []
    *before, last = line.split(" ")
    words = [word for word in before if "=" in word]
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        bash = BashCompletion(GlobalHydra.instance().config_loader())
        try:
            return bash._query(name, " ".join([*words, last]))
        except Exception:  # a word before it is wrong
            return []


def main() -> None:
    if not sys.argv[1:]:
        sys.stdout.write(script())
        return
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    name, line = sys.argv[1:]
    sys.stdout.writelines(f"{found}\n" for found in completions(name, line))


if __name__ == "__main__":
    main()
