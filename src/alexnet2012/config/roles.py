"""Roles of settings: which must match when a run resumes, and which distinguish two runs.

Each field of :class:`alexnet2012.config.schema.TrainConfig` declares a role in its metadata, or
inherits that of the group it belongs to. Readers select settings by role, so a new setting needs no
entry in any other module.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import get_type_hints


class Role(Enum):
    """What a setting affects. Only ``variant`` and ``identity`` change the trained weights."""

    variant = "variant"  # differs between the runs of an ablation sweep: recipe, seed, …
    identity = "identity"  # the same in all runs of a sweep
    length = "length"  # when training stops; may change on resume
    evaluation = "evaluation"  # how and how often errors are measured
    input = "input"  # where images are stored and how they are decoded
    placement = "placement"  # where the run computes; changes results by rounding at most
    world_size = "world_size"  # how many processes to start; the summary has the actual number
    checkpointing = "checkpointing"  # when the run is saved and how it resumes
    logging = "logging"  # what is recorded


@cache
def role_of(schema: type, key: str) -> Role | None:
    """The role of the setting or group ``key``, such as ``data.limit`` or ``mesh``.

    An unknown key has the role of the innermost group that the schema knows; None without any.
    """
    role: Role | None = None
    group: type = schema
    for name in key.split("."):
        own_role, group = _members(group).get(name, (None, object))
        role = own_role or role
    return role


@cache
def _members(schema: type) -> dict[str, tuple[Role | None, type]]:
    if not is_dataclass(schema):
        return {}
    types = get_type_hints(schema)
    return {item.name: (item.metadata.get("role"), types[item.name]) for item in fields(schema)}
