"""``python -m alexnet2012.effects``; see :mod:`alexnet2012.ledger.ablations`."""

from alexnet2012.ledger.ablations import main

if __name__ == "__main__":
    main()
