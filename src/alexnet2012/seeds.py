"""``python -m alexnet2012.seeds``; see :mod:`alexnet2012.ledger.ensembles`."""

from alexnet2012.ledger.ensembles import main

if __name__ == "__main__":
    main()
