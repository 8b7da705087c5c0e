"""Comparisons: methods x seeds on a suite, each result a cell on disk that is computed once, and what follows of them.

Imported from their own modules; in reading order: ``config`` (what is asked), ``spec`` and ``cells`` (what a result is
called and where it lies), ``plan`` (which are wanted), ``workshop`` (computing one), ``jobs`` (several processes),
``forecast`` (how long it would take), ``statistics`` and ``bootstrap``, ``summary`` and ``tables``, ``tune``.
"""
