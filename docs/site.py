"""What `make site` adds to the pages: settings of the schema, and links within docstrings."""

from __future__ import annotations

import re
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from alexnet2012.cli.help import settings
from alexnet2012.cli.registry import COMMANDS
from alexnet2012.config.compose import CONF

MARK = re.compile(r"<!-- settings of (\w+) -->")
ROLE = re.compile(r":(?:func|class|meth|mod|data):<code>\.?([\w.]+)</code>")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return MARK.sub(lambda found: table(found[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A link where the site has the place, else the name."""
    return ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)


def table(name: str) -> str:
    """Every setting of an entry point with its default, as a Markdown table."""
    schema = COMMANDS[name].schema
    assert schema is not None
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        found = list(settings(schema, compose(name)))
    rows = [(f"`{s.key}`", f"`{s.value}`", s.allowed, s.meaning) for s in found]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(
        ["| setting | default | | |", "|---|---|---|---|", *(f"| {x} |" for x in lines)]
    )
