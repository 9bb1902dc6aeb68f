"""What the documents name is there: commands that compose, links that lead somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import pytest
from documented import lines, make_here, printed
from omegaconf import OmegaConf

from alexnet2012.cli.args import named
from alexnet2012.cli.registry import COMMANDS
from alexnet2012.config.compose import compose_config
from alexnet2012.data.sources.photos import photograph, regions
from alexnet2012.distributed.watchdog.failure_report import EXIT_FAILURE, EXIT_USER_ERROR
from alexnet2012.ledger.authors_runs import authors_table
from alexnet2012.ledger.tables import claims_table

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Whose commands are run, by test_readme.py and test_use_page.py; those of the others are composed.
RUN = {"README.md", "commands.md", "use.md"}
GENERATED = runpy.run_path(str(ROOT / "docs" / "generated.py"))
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))
SCHEMAS = {c.name: c.schema for c in COMMANDS.values() if c.schema is not None}


# Commands that are neither composed nor run by a test of their page, and why not.
NOT_RUN = {
    r"(docker|(\.venv/bin/)?pip|git) .*": "needs a network or a container engine",
    r"make setup.*|export \w+=.*|cd .*|mkdir .*|python3 -m venv .*|\. .*": "sets up an environment",
    r"python benchmarks/\w+\.py.*": "measures for minutes; below, only the file is looked for",
    r"diff conf/\S+ conf/\S+": "test_readme.py runs both: docs/commands.md has them, too",
    r"torchrun --nproc-per-node 2 \w+\.py": "test_lecture.py runs the programs",
    r"python -c .*photograph.*": "test_the_cup_of_the_tutorial_was_not_trained_on",
    r"eval .*": "test_completion.py runs it in bash",
}


def commands(page: Path) -> list[str]:
    """The commands in blocks of shell, what is optional left out."""
    return [part for line in lines(page) for part in line.replace("…", "").split(" && ")]


def of_the_package(command: str) -> list[str]:
    """The name of the command of this package that is called, and its words; or nothing."""
    if command.startswith("make reproduce"):
        keys = {"DATA": "source=", "OUT": "out=", "ARGS": ""}
        given = (word.split("=", 1) for word in shlex.split(command)[2:])
        return ["reproduce", *" ".join(keys[key] + value for key, value in given).split()]
    words = [
        w.strip("[]") if w.count("[") != w.count("]") or w.startswith("[") else w
        for w in shlex.split(command)
    ]
    for i, word in enumerate(words):
        if word.startswith("launch/"):
            return ["train", *words[i + 1 :]]
        if word.startswith("alexnet2012.") and words[i - 1] == "-m":
            return [word.removeprefix("alexnet2012."), *words[i + 1 :]]
        if word == "alexnet2012" and words[i + 1 : i + 2] and words[i + 1] in COMMANDS:
            return words[i + 1 :]
    return []


def composed() -> list[object]:
    return [
        pytest.param(words, id=f"{page.name}: {command[:90]}")
        for page in PAGES
        if page.name not in RUN
        for command in commands(page)
        if (words := of_the_package(command))
    ]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in RUN], ids=lambda page: page.name
)
def test_a_command_is_composed_or_there_is_a_reason_why_not(page: Path) -> None:
    for command in commands(page):
        known = any(re.fullmatch(pattern, command) for pattern in NOT_RUN)
        assert of_the_package(command) or known or "--version" in command, command


@pytest.mark.parametrize("words", composed())
def test_a_documented_command_is_one(words: list[str]) -> None:
    name = words[0]
    entry = COMMANDS[name].entry if name in COMMANDS else None
    assert callable(import_module(entry or f"alexnet2012.{name}").main)
    words = named("run", words) if name == "verify" else words
    sweeps = "-m" in words
    overrides = [word for word in words[1:] if "=" in word]
    if name not in SCHEMAS:
        return
    if sweeps:  # its first job, without what only a sweeper that optimises reads
        overrides = [word for word in overrides if "interval(" not in word]
        overrides = [re.sub(r"=([^,\[]+),.*", r"=\1", word) for word in overrides]
        overrides = [word for word in overrides if not word.startswith("hydra")]
    overrides = [word.replace("ablation=NAME", "ablation=no_lrn") for word in overrides]
    # Files that import_net writes.
    overrides = [re.sub(r"=net147/\w+\.yaml", "=code145", word) for word in overrides]
    compose_config(COMMANDS[name].config, SCHEMAS[name], overrides)


def test_documents_have_commands_to_check() -> None:
    assert len(composed()) > 60


def anchors(page: Path) -> list[str]:
    """Of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        if anchor:  # of a heading that no other has: these get numbers
            assert anchors(there).count(anchor) == 1, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.findall(
        r"`?\b((?:tests|benchmarks|launch|conf|src)/[\w/]+\.(?:py|sh|yaml|sbatch))\b",
        page.read_text(encoding="utf-8"),
    )
    for name in named:
        if "NAME" not in name:
            assert (ROOT / name).is_file(), name


def test_the_table_of_claims_is_that_of_the_registry() -> None:
    """``python -m alexnet2012.ledger --claims`` prints it."""
    assert claims_table() in (ROOT / "docs" / "ledger.md").read_text("utf-8")


def test_the_table_of_the_authors_runs_is_that_of_the_command() -> None:
    assert authors_table() in (ROOT / "docs" / "ledger.md").read_text("utf-8")


@pytest.mark.parametrize("page", GENERATED["pages"](), ids=lambda page: page.name)
def test_what_commands_print_stands_in_the_pages(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python docs/generated.py`` writes it again."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", GENERATED["COLUMNS"])

    def run(words: list[str]) -> str:
        monkeypatch.setattr("sys.argv", words)
        COMMANDS[words[0]].main()
        return capsys.readouterr().out

    text = page.read_text(encoding="utf-8")
    assert GENERATED["written"](text, run) == text, "run python docs/generated.py"


def test_the_cup_of_the_tutorial_was_not_trained_on() -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (box,) = re.findall(r"photograph\('coffee'\)\.crop\(\((.+?)\)\)", text)
    assert tuple(map(int, box.split(", "))) == regions(*photograph("coffee").size)["val"]


def test_the_site_builds(tmp_path: Path) -> None:
    assert "--quiet" not in make_here([*printed("make site"), "-n"], "")  # or nothing is strict
    make_here(printed("make site"), f"--site-dir {tmp_path}")
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("index.html")}
    for path, text in pages.items():  # Markdown that was not understood, links out of the site
        shown = re.sub(r"<(code|pre|script)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.findall(r"\]\(|`|href=\"\S*\.py\"", shown), path
    home = pages[tmp_path / "index.html"]
    assert "two processes, each holding half" in home
    fetched = re.findall(r"(?:src|href)=\"(https?://[^\"]+\.(?:js|css|woff2?))\"", home)
    assert fetched == []


def test_the_front_page_and_the_menu_have_the_same_pages_in_the_same_order() -> None:
    """Every page of docs/ is in the menu, or the site does not build."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    front = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    wanted = re.findall(r"^ +- (?:(.+): (\S+\.md)|(\w+):)$", menu, re.MULTILINE)[1:]
    found = re.findall(r"^(?:- \[(.+)\]\((\S+\.md)\): .+|## (\w+))$", front, re.MULTILINE)
    assert found == wanted


@pytest.mark.parametrize("page", REFERENCE["PAGES"], ids=lambda page: page.name)
def test_the_reference_says_what_the_package_says(page: Path) -> None:
    """``python docs/reference.py`` writes it again."""
    text = page.read_text(encoding="utf-8")
    assert REFERENCE["written"](text) == text, "run python docs/reference.py"
    assert not re.search(r":(func|class|meth|mod|data):|<factory>|ForwardRef", text)


def test_the_reference_has_every_command_and_what_python_needs() -> None:
    settings, python = (page.read_text(encoding="utf-8") for page in REFERENCE["PAGES"])
    documented = set(re.findall(r"<!-- settings of (\w+) -->", settings))
    assert documented | {"doctor"} == set(SCHEMAS)
    assert not re.findall(r"^\| `.*\|  \|$", settings, re.MULTILINE)  # settings without a meaning
    assert "null: next to the source" in settings  # a comment of the schema
    for name in ("AlexNet.full_state_dict", "Communicator", "Progress", "load_trained"):
        assert f" `{name}`" in python


def test_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"## Exit codes\n(.*?)\n## ", text, re.DOTALL)
    codes = {int(code): words for code, words in re.findall(r"^\| (\d+) \|(.*)", section, re.M)}
    assert set(codes) == {0, EXIT_FAILURE, EXIT_USER_ERROR, 128 + SIGINT, 128 + SIGTERM}
    assert "user can change" in codes[EXIT_USER_ERROR]
    assert "Ctrl-C" in codes[128 + SIGINT]


def test_the_table_of_recipes_is_what_the_files_say() -> None:
    """One row for each difference between the two files, so none is forgotten."""
    paper, code = (
        dict(_flat(OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/recipe/{name}.yaml"))))
        for name in ("paper", "code145")
    )
    differing = {key for key in paper if paper[key] != code[key]} - {"name"}
    assert differing == {
        *(f"conv{i}.init_std" for i in (3, 4, 5)),
        *("conv1.padding", "conv1.overhang", "conv1.after", "conv2.after", "conv5.after"),
        "lrn.divide_by_window",
        *("augment.include_last_position", "augment.images_per_draw", "augment.mean_follows_crop"),
        *("augment.lighting_scale", "augment.train_divisor", "shuffle"),
    }, "docs/recipes.md"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
