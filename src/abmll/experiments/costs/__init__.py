"""What a model and a method would cost, from the model's shape alone: parameters, bytes, operations, time.

Reading order: gpus (memory and speed of a device), shapes (a model whose weights take no memory), saved (what autograd
keeps of a forward pass), flops (matrix products), totals (the four methods put together). Nothing is downloaded or
measured: every number follows from a formula in a docstring.
"""

from abmll.experiments.costs.gpus import Gpu, find_gpu
from abmll.experiments.costs.shapes import Shape, load_shape
from abmll.experiments.costs.totals import METHODS, Estimate, estimate_all

__all__ = ["METHODS", "Estimate", "Gpu", "Shape", "estimate_all", "find_gpu", "load_shape"]
