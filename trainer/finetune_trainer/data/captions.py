"""Batches of images with a text to say about each."""

from dataclasses import dataclass

from finetune_trainer.data.dataset import Batch, ImagePart, Part, TextPart
from finetune_trainer.data.order import Indices


@dataclass(frozen=True, eq=False)
class CaptionPart(Part):
    """Images and captions. Captions are padded to the longest of a pass, and do not decide who shares a batch."""

    rows: Indices
    images: ImagePart
    texts: TextPart
    start_id: int
    """Token that a caption begins with when it is generated; it takes the place of the tokenizer's own first one."""
    lengths: None = None
    padded_lengths: None = None

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:
        """``pixel_values``, ``input_ids`` (n, T) and, if something is padded, ``attention_mask``; target: (n, T)."""
        images = self.images.batch(epoch, indices, is_counted=is_counted)
        texts = self.texts.batch(epoch, indices, is_counted=is_counted)
        texts.inputs["input_ids"][:, 0] = self.start_id
        inputs = images.inputs | {name: texts.inputs[name] for name in _TEXT_INPUTS if name in texts.inputs}
        return Batch(inputs, texts.target, indices, is_counted)


_TEXT_INPUTS = ("input_ids", "attention_mask")
