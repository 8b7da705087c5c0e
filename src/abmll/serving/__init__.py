"""A language model in memory, the posteriors of many tasks, and an interface over the network. Empty for now.

Not here: learning or prediction, which ``model`` does.
Start with ``model.learned_task``, which is what will be served.
"""
