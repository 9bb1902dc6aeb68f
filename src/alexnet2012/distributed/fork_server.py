"""Imported first by the fork server of the ranks, so that the kernel ends it with the launcher.

Otherwise the server would notice the launcher's end only after all imports, and take seconds to
exit; its ranks, which end with it, would run until then.
"""

from __future__ import annotations

from alexnet2012.distributed.launch import die_with_parent
from alexnet2012.utils.collector import before_imports

die_with_parent()
before_imports()
