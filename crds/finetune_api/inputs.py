"""What a run starts from: the model, and the samples with how they are read, divided and changed."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from finetune_api.augmentation import Augmentation
from finetune_api.base import (
    ApiModel,
    Count,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    Rule,
    Source,
    Unique,
    Word,
    requires,
)
from finetune_api.cleaning import Cleaning


class ModelSpec(ApiModel):
    """The model to start from: a checkpoint, or an architecture made at random from its configuration."""

    source: Source | None = None
    """Checkpoint folder: `hf://owner/name`, `pvc://claim/path` or `file:///path`.
    Without it, `config` makes a new model."""
    revision: Word | None = None
    """Commit, tag or branch of an `hf://` `source`. Pin a commit to make the run reproducible."""
    tokenizer: Source | None = None
    """Where the tokenizer lies, if not beside the model. `revision` is not for it: an `hf://` one is that of the main
    branch."""
    dropout: Fraction | None = None
    """Dropout probability of every dropout layer, 0 to 1. Unset: what the checkpoint's configuration says."""
    config: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    """Fields of the architecture's configuration to set (`model_type` is needed when there is no `source`). A
    checkpoint's position embeddings are interpolated for another `image_size`, and its first convolution is fitted to
    other `num_channels` (1 or 3); a field by which something else that it has learned would be lost is refused."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. In a cluster the runtime must consent as well; on one machine
    this is consent enough."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.source) || has(self.config)",
            check=lambda model: model.source is not None or model.config is not None,
            message="must have source, or config with model_type to make a new model",
        ),
        requires("revision", "source"),
    )


class Columns(ApiModel):
    """Names of the columns (CSV, Parquet) or keys (JSON Lines) to read. Image folders need none."""

    text: Word = "text"
    """The text; for causal-lm the text to learn, for image-captioning the caption, for sequence-to-sequence what
    `target` is made of."""
    text_pair: Word | None = None
    """The second text of a pair."""
    label: Word = "label"
    """The class, the list of classes (`multiLabel`) or the number to predict (regression)."""
    image: Word = "image"
    """Path of the image, relative to the file that names it."""
    objects: Word = "objects"
    """The objects in an image: a list of `{"bbox": [x, y, width, height], "category": class}`, in pixels from the upper
    left corner, as COCO has them; or `{"bbox": [box, …], "category": [class, …]}`. In CSV as JSON."""
    messages: Word | None = None
    """For causal-lm instead of `text`: a conversation, a list of `{"role": "system" | "user" | "assistant", "content":
    text}`. Only what the assistant says is learned."""
    prompt: Word | None = None
    """For causal-lm instead of `text`: what `completion` answers. It is read and not learned."""
    completion: Word | None = None
    """The answer to `prompt`."""
    target: Word = "target"
    """For sequence-to-sequence: the text to write."""
    tokens: Word = "tokens"
    """For token-classification: the words of a text, a list. In CSV as JSON."""
    tags: Word = "tags"
    """For token-classification: the tag of each word, a list as long as `tokens`: `O`, `B-PER`, `I-PER` (IOB2) or any
    other names; or numbers, the places of tags in `labels` from 0. In CSV as JSON."""

    rules: ClassVar[tuple[Rule, ...]] = (
        requires("prompt", "completion"),
        requires("completion", "prompt"),
        Rule(
            cel="!has(self.messages) || !has(self.prompt)",
            check=lambda columns: columns.messages is None or columns.prompt is None,
            message="goes without prompt and completion",
            field="messages",
        ),
    )


class Split(ApiModel):
    """How one source is divided. The three are proportions: 7, 2, 1 says the same as 0.7, 0.2, 0.1."""

    train: PositiveFloat = 7
    """Share of the training set."""
    validation: PositiveFloat = 2
    """Share of the validation set; ignored when `validationSource` is given."""
    test: NonNegativeFloat = 1
    """Share of the test set; 0 for none; ignored when `testSource` is given."""
    stratify: bool = True
    """Keep the classes' proportions in every part (single-label classification)."""
    seed: Count = 0
    """Seed of the division; the same seed and data give the same parts."""


class DataSpec(ApiModel):
    """The samples: where they lie, what is in them and how they become batches."""

    source: Source
    """File, folder of files, or folder of images (`class/image.png`): `file:///`, `pvc://` or `hf://` (a dataset
    repository)."""
    validation_source: Source | None = None
    """Validation set that you bring; `source` is then not divided for one."""
    test_source: Source | None = None
    """Test set that you bring; `source` is then not divided for one."""
    revision: Word | None = None
    """Commit, tag or branch of `hf://` sources."""
    format: Literal["csv", "jsonl", "parquet", "imagefolder"] | None = None
    """Format of the source. Unset: told from the file names."""
    columns: Columns = Columns()
    """Names of the columns."""
    labels: Annotated[tuple[Word, ...], Field(min_length=1, max_length=10_000), Unique(ordered=True)] | None = None
    """The classes (or tags of words), in the order of their ids. Unset: those in all of `source`, sorted (whole numbers
    by value); a class that no training sample has is then an error."""
    multi_label: bool = False
    """A sample may have any number of classes: the label is a list, or a string divided by `labelSeparator`."""
    label_separator: Annotated[str, Field(min_length=1, max_length=8)] = "|"
    """What divides the classes of a multi-label string."""
    cleaning: Cleaning | None = None
    """What is looked for in the samples before they are divided. Unset: an empty or broken sample ends the run."""
    split: Split = Split()
    """How `source` is divided into training, validation and test set."""
    augmentation: Augmentation | None = None
    """Random changes of training samples."""
    max_length: Annotated[int, Field(ge=2, le=1_048_576)] | None = None
    """Longest sequence in tokens; longer texts are truncated. Unset: the model's limit, 512 at most."""
    padding: Literal["longest", "maxLength"] = "longest"
    """Pad to the longest sample of a batch (fast), or always to `maxLength` (fixed shapes)."""
    image_size: Annotated[int, Field(ge=4, le=8192)] | None = None
    """Side in pixels to which images are scaled. Unset: what the model was made for, 224 if it does not say."""
