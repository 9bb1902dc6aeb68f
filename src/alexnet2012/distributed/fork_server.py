"""Imported first by the fork server of the ranks: has the kernel end it with the launcher.

Otherwise it would notice only after all imports, and take seconds to exit; the ranks, which die
with it, would go on until then.
"""

from __future__ import annotations

from alexnet2012.distributed.launch import die_with_parent

die_with_parent()
