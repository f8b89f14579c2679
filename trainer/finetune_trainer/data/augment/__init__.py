"""Random changes of training samples, functions of (seed, epoch, index): no state, so that a resumed run repeats them.

Images are changed as they are read (``images``, ``mixing``). Texts are changed before the run, into a few variants that
the epochs take turns with (``variants``): the order of samples needs their lengths, and a translation takes too long.
"""
