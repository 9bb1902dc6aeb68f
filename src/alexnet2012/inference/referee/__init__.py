"""Compare the AlexNets of others with the paper and the 2012 code."""
