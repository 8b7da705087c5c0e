"""The command ``abmll``: one file a verb (`abmll tasks` is ``listing``), whose function signature is its flags.

Not here: anything that computes. A verb reads its inputs, calls a room below, and says what came of it.
Start with ``main``, which lists the verbs, then ``train``; ``console`` is how a verb speaks.
"""
