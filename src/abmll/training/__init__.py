"""Meta-training: the outer loop over episodes, its checkpoints, and the calibration prior that is learned at the end.

Not here: the learning rules (``methods``), and anything about unseen tasks but theta's calibration prior.
Start with ``trainer``, then ``sampler`` (which examples an episode takes) and ``episodes`` (their batches);
``callbacks`` and ``trackers`` are what may watch it, ``validation`` evaluates theta meanwhile.
"""
