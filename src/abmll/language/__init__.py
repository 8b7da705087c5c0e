"""The frozen language model: loading it, turning examples into tokens, adapters on its layers, scores of options.

Not here: what is learned or how (``methods``), and no mathematics of the Gaussians (``posterior``).
Start with ``scorer``, then ``batch`` and ``wiring``.
"""
