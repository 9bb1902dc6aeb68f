"""What `make site` changes in the pages: the site does not contain the rest of the repository."""

from __future__ import annotations

import re
from typing import Any

REPOSITORY_LINK = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files outside docs/ as plain text."""
    return REPOSITORY_LINK.sub(r"\1", markdown)
