"""``python -m alexnet2012.pretraining``; see :mod:`alexnet2012.ledger.pretraining`."""

from alexnet2012.ledger.pretraining import main

if __name__ == "__main__":
    main()
