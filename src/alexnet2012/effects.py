"""Former name of ``python -m alexnet2012.ledger DIR --no-evaluation``."""

import sys
from pathlib import Path

from alexnet2012.ledger import command


def main() -> None:
    # experiment=effects/quick, also a former name, now writes to runs/ablations-quick.
    words = [w if Path(w).exists() else w.replace("effects-", "ablations-") for w in sys.argv[1:]]
    command.main([*words, "--no-evaluation"])


if __name__ == "__main__":
    main()
