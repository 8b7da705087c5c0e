"""In-context learning: labelled examples in the prompt, of a frozen model (ICL), of one that was trained to read them
(MetaICL; Min et al., arXiv 2110.15943), and of ABMLL (the paper's third version).

Whoever makes the batches puts ``num_demonstrations`` examples before every question: in training others of the same
task, on an unseen task those that it is adapted to. The rules here only say what is learned besides.
"""

from typing import ClassVar

from abmll.methods.abmll import Abmll
from abmll.methods.lora import Pretrained, StructuredLora, Unchanged


class Icl(Pretrained):
    """The model as it is; an unseen task is learned from its demonstrations alone."""

    name: ClassVar[str] = "icl"
    label: ClassVar[str] = "In-context"
    demonstrations: ClassVar[bool] = True


class MetaIcl(Unchanged, StructuredLora):
    """One adapter learns, task after task, to answer behind demonstrations; an unseen task changes nothing in it."""

    name: ClassVar[str] = "metaicl"
    label: ClassVar[str] = "MetaICL"
    demonstrations: ClassVar[bool] = True


class AbmllIcl(Abmll):
    """ABMLL on prompts with demonstrations, in training and on an unseen task."""

    name: ClassVar[str] = "abmll-icl"
    label: ClassVar[str] = "ABMLL in context"
    demonstrations: ClassVar[bool] = True
