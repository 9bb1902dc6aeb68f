"""``python -m alexnet2012.ledger DIR``; see :mod:`alexnet2012.ledger.command`."""

from alexnet2012.ledger.command import main

if __name__ == "__main__":
    main()
