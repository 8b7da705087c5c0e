"""Where units of work are done: processes of this computer, jobs of Slurm, tasks of Ray.

``work`` hands units to any of them, and again where a worker has died; ``choice`` makes the one that a command asks
for; the others are one library each. Not here: what a unit is (``planning``, ``search``).
"""
