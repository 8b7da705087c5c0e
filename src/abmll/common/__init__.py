"""What every room uses: errors, settings and their checks, files, checkpoints, downloads, progress.

Not here: anything about tasks, models or mathematics.
Start with ``config``, which has every setting.
"""
