"""Benchmarks: what ABMLL costs beside plain LoRA and beside the published algorithm, measured in one run.

Reading order: workload (the batches), pairs (how a ratio is timed), plain_lora and published (the peers), contenders
(everything that trains, behind one interface), training / predicting / scaling / peaks / starting / data / floors (the
cells: each measures a few rows), cells (the list of them), store (results on disk), small (a trial run's model), run
(the command), table (the tables of docs/performance.md).
"""
