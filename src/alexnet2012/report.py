"""``python -m alexnet2012.report``; see :mod:`alexnet2012.ledger.report.render`."""

from alexnet2012.ledger.report.render import main

if __name__ == "__main__":
    main()
