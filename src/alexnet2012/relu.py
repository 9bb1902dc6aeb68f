"""``python -m alexnet2012.relu``; see :mod:`alexnet2012.ledger.relu_vs_tanh`."""

from alexnet2012.ledger.relu_vs_tanh import main

if __name__ == "__main__":
    main()
