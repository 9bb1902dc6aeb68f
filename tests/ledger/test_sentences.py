"""Every quantitative sentence of the paper and of the article has a row in the ledger.

Sentences are in our own words, by place; a place has the claims that its sentences are about.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from alexnet2012.ledger.claims import load_claims

PAPER = [
    ("abstract", "training on 1.2 million images of 1,000 classes", "data"),
    ("abstract", "errors of 37.5 and 17.0 on the test images of 2010", "lsvrc2010"),
    ("abstract", "60 million parameters and 650,000 neurons", "size"),
    ("abstract", "five convolutions, some with pools, three fully connected layers", "layers"),
    ("abstract", "a winning error of 15.3 against 26.2 of the second", "table2"),
    ("1", "each convolution has at most 1% of the parameters, and none is idle", "conv-share"),
    ("1", "the net is as large as the memory of the cards allows", "memory"),
    ("1", "five to six days on two GTX 580 of 3 GB", "time"),
    ("2", "1.2 million images for training, 50,000 for validation, 150,000 for the test", "data"),
    ("2, 6", "15 million images of 22,000 classes, on which the net was pretrained", "pretrain"),
    ("3.1, fig. 1", "ReLU reaches 25% training error six times faster than tanh", "relu"),
    ("3.2", "a card of 3 GB holds half of the net", "memory"),
    ("3.2", "two cards lower the errors by 1.7 and 1.2 points", "two-gpu"),
    ("3.2", "the net on two cards takes slightly less time", "two-gpu-time"),
    ("3.3", "k 2, n 5, alpha 1e-4, beta .75: errors lower by 1.4 and 1.2 points", "lrn"),
    ("3.3", "on CIFAR-10, 13% without normalisation and 11% with it", "lrn-cifar10"),
    ("3.4", "pools 3/2 lower the errors by .4 and .3 points compared with 2/2", "overlap"),
    ("3.4", "the same on ImageNet, for the row of a four-layer network", "overlap-cifar10"),
    ("3.4", "with overlapping pools it is slightly harder to overfit", "overlap-overfit"),
    ("3.5", "numbers and sizes of the kernels of eight layers", "layers"),
    ("3.5, fig. 2", "253,440 neurons in the first layer", "fig2"),
    ("3.5, fig. 2", "150,528 inputs, 186,624 to 1,000 neurons in others", "fig2-layers"),
    ("4", "60 million parameters", "size"),
    ("4.1", "the transformed images take no time of the training", "augment-free"),
    ("4.1", "crops and flips multiply the training set by 2,048", "augment"),
    ("4.1", "without them, substantial overfitting", "augment-overfit"),
    ("4.1", "ten views at test time", "lsvrc2010-1crop"),
    ("4.1", "colour noise of deviation .1 lowers top-1 by over a point", "lighting"),
    ("4.2", "outputs of hidden units are dropped with a probability of .5", "dropout"),
    ("4.2", "without dropout, substantial overfitting", "dropout-overfit"),
    ("4.2", "dropout about doubles the iterations", "dropout-iterations"),
    ("5", "batches of 128, momentum .9", "recipe"),
    ("5", "weight decay of .0005 lowers the training error", "decay"),
    ("5", "weight decay is a regulariser, but not merely that", "decay-regulariser"),
    ("5", "initial weights of deviation .01; biases of 1 speed up the start", "bias-ones"),
    ("5", "a rate of .01 divided by ten three times, about 90 epochs", "recipe"),
    ("5", "five to six days", "time"),
    ("6, table 1", "37.5 and 17.0; 47.1 and 28.2; 45.7 and 25.7", "table1"),
    ("6, table 1", "37.5 and 17.0 of the net", "lsvrc2010"),
    ("6", "39.0 and 18.3 without the average over ten views", "lsvrc2010-1crop"),
    ("6", "validation and test errors within .1 points", "val-test"),
    ("6, table 2", "one net 18.2, five 16.4, a pretrained one 16.6, seven 15.3", "table2"),
    ("6", "a sixth convolution, pretrained on the release of fall 2011", "pretrain"),
    ("6", "67.4 and 40.9 on 10,184 classes", "imagenet2009"),
    ("6", "78.1 and 60.9, the best before", "imagenet2009-best"),
    ("6.1, fig. 3", "96 kernels, without and with colour by tower, in every run", "fig3"),
    ("6.1, fig. 4", "five guesses on eight images; six nearest images of five others", "fig4"),
    ("6.1", "images near by 4,096 activations are not near by their pixels", "fig4-pixels"),
    ("7", "removing a middle layer costs about 2 points of top-1", "depth"),
]

ARTICLE = [
    ("data set", "1.3 million images of 1,000 classes", "data"),
    ("data set", '"2010 万" images', "data"),
    ("network", "60 million parameters and 500,000 neurons", "size"),
    ("network", "five convolutions and two, elsewhere three, fully connected layers", "layers"),
    ("results", "39.7 and 18.9 on the test images of 2010", "lsvrc2010"),
    ("results", "15.3 against 26.2", "table2"),
    ("ReLU", "six times faster", "relu"),
    ("pools", "-.4 and -.3 points; pools make the network smaller", "overlap"),
    ("dropout", ".5, before two layers, in place of regularisation", "dropout"),
    ("dropout", "twice the iterations", "dropout-iterations"),
    ("training", "90 epochs, .01, .9, three drops", "recipe"),
    ("training", "weight decay .0005", "decay"),
    ("training", "five to six days", "time"),
]


def without_row(sentences: Iterable[tuple[str, str, str]], ids: Iterable[str]) -> list[str]:
    """The sentences whose claim is not among the ids, with their places."""
    known = set(ids)
    return [f"{place}: {text} ({claim})" for place, text, claim in sentences if claim not in known]


@pytest.mark.parametrize("sentences", [PAPER, ARTICLE], ids=["paper", "article"])
def test_every_quantitative_sentence_has_a_row(sentences: list[tuple[str, str, str]]) -> None:
    assert without_row(sentences, (claim.id for claim in load_claims())) == []


def test_a_sentence_whose_row_was_removed_is_named() -> None:
    ids = [claim.id for claim in load_claims() if claim.id != "depth"]
    assert without_row(PAPER, ids) == [
        "7: removing a middle layer costs about 2 points of top-1 (depth)"
    ]


@pytest.mark.parametrize(("source", "sentences"), [("paper", PAPER), ("article", ARTICLE)])
def test_a_row_quotes_the_source_whose_sentences_it_is_about(
    source: str, sentences: list[tuple[str, str, str]]
) -> None:
    quoting = {claim.id for claim in load_claims() if getattr(claim, source)}
    assert quoting == {claim for _, _, claim in sentences}
