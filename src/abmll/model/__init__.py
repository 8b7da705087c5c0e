"""What users hold in their hands: AbmllModel, TaskPosterior, Prediction, and how they lie on disk.

Not here: meta-training (``training``) and measuring (``experiments``).
Start with ``meta_learner`` (AbmllModel), then ``learned_task`` (TaskPosterior) and ``prediction``.
"""
