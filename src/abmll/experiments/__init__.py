"""Comparing methods: cells that are computed once, metrics, statistics, tables, figures, and the choice of settings.

Not here: how a task is learned (``model``, ``methods``).
Start with ``few_shot`` (one method on the unseen tasks of a suite), then ``cells``, ``planning`` and ``cell_runner``
(many methods), and ``executors`` (where cells are computed); ``html`` draws the report, ``costs`` estimates what a
larger model would need.
"""
