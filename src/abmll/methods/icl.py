"""In-context learning: labelled examples in the prompt, of a frozen model (ICL), of one that was trained to read them
(MetaICL; Min et al., arXiv 2110.15943), and of ABMLL (the paper's third version).

Whoever makes the batches puts ``num_demonstrations`` examples before every question: in training others of the same
task, on an unseen task those that it is adapted to. The rules here only say what is learned besides.
"""

from abmll.methods.abmll import Abmll
from abmll.methods.lora import Pretrained, Unchanged


class Icl(Pretrained):
    """The model as it is; an unseen task is learned from its demonstrations alone."""

    name = "icl"
    label = "In-context"
    demonstrations = True


class BatchIcl(Icl):
    """The same with batch calibration (Zhou et al., arXiv 2309.17249): answers over their mean on all questions."""

    name = "icl-batch"
    label = "In-context, batch-calibrated"
    batch_calibrated = True


class MetaIcl(Unchanged):
    """One adapter learns, task after task, to answer behind demonstrations; an unseen task changes nothing in it."""

    name = "metaicl"
    label = "MetaICL"
    demonstrations = True


class AbmllIcl(Abmll):
    """ABMLL on prompts with demonstrations, in training and on an unseen task."""

    name = "abmll-icl"
    label = "ABMLL in context"
    demonstrations = True
