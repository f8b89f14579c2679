"""Random changes of training samples: of images, and of texts."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Fraction, Rule, Source, Word


class ColorJitter(ApiModel):
    """Random changes of colour; each is drawn anew for every image."""

    brightness: Fraction = 0
    """Multiply the brightness by a factor drawn from 1 ± this."""
    contrast: Fraction = 0
    """Multiply the contrast by a factor drawn from 1 ± this."""
    saturation: Fraction = 0
    """Multiply the saturation by a factor drawn from 1 ± this; nothing to grey images."""
    hue_degrees: Annotated[float, Field(ge=0, le=180)] = 0
    """Turn the hue by an angle drawn from ± this many degrees; nothing to grey images."""


class Erasing(ApiModel):
    """Random erasing (https://arxiv.org/abs/1708.04896): a rectangle of the image is made black."""

    probability: Fraction = 0.25
    """Share of the images from which something is erased."""
    max_area: Annotated[float, Field(gt=0, le=1)] = 0.33
    """Largest share of the image that is erased; the least is 0.02, or this if it is less."""


class ImageAugmentation(ApiModel):
    """Random changes of training images, a function of (seed, epoch, sample): a resumed run repeats them exactly."""

    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0
    """Rotate by an angle drawn from ± this many degrees."""
    crop_min_area: Annotated[float, Field(gt=0, le=1)] = 1
    """Crop to an area drawn from this share to 1 of the image, then scale back; 1 does not crop."""
    horizontal_flip: Fraction = 0
    """Probability of a horizontal flip."""
    vertical_flip: Fraction = 0
    """Probability of a vertical flip."""
    color: ColorJitter | None = None
    """Changes of colour."""
    erasing: Erasing | None = None
    """Erase a rectangle."""
    mixup: Annotated[float, Field(gt=0, le=10)] | None = None
    """Mixup (https://arxiv.org/abs/1710.09412): blend each image, and its class, with those of another sample by a
    share drawn from Beta(this, this). For image-classification."""
    cutmix: Annotated[float, Field(gt=0, le=10)] | None = None
    """CutMix (https://arxiv.org/abs/1905.04899): paste a rectangle of another sample, of an area drawn from
    Beta(this, this), and share the class by area. With `mixup`, each image gets one of the two by chance. For
    image-classification."""
    mix_probability: Fraction = 1
    """Share of the images that `mixup` and `cutmix` change."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup is not None or self.cutmix is not None


class Synonyms(ApiModel):
    """Words are replaced by synonyms of theirs."""

    source: Source
    """A text file with a line for each word, `word<TAB>synonym<TAB>synonym…`; or the data folder of the package `wn`
    (with its `wn.db`): a WordNet."""
    lexicon: Word | None = None
    """The WordNet to use, such as `oewn:2024`, if the folder has several. Unset: all of them."""
    rate: Fraction = 0.1
    """Probability that a word that has synonyms is replaced by one of them."""


class BackTranslation(ApiModel):
    """Texts are translated into another language and back, by two models like Marian's (encoder and decoder)."""

    forward: Source
    """The model that translates the texts into another language: a checkpoint folder with its tokenizer."""
    backward: Source
    """The model that translates back."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """Words are drawn with this temperature, so that every variant reads differently; 0 takes the likeliest, always the
    same."""


class TextAugmentation(ApiModel):
    """Variants of every training text, made once before the run: the epochs take turns with them and the original.

    Of a pair, each text is changed. In this order: back-translation, synonyms, swaps, deletions. Words are what spaces
    and punctuation divide.
    """

    variants: Annotated[int, Field(ge=1, le=32)] = 4
    """Variants of each text. Over this many epochs and one more, a text is seen once as it was written, and once as
    each variant."""
    synonyms: Synonyms | None = None
    """Replace words by synonyms."""
    swap: Fraction | None = None
    """Probability that a word changes places with another of the same text."""
    deletion: Fraction | None = None
    """Probability that a word is left out; one always stays."""
    back_translation: BackTranslation | None = None
    """Translate there and back."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.synonyms) || has(self.swap) || has(self.deletion) || has(self.backTranslation)",
            check=lambda text: any(
                each is not None for each in (text.synonyms, text.swap, text.deletion, text.back_translation)
            ),
            message="must have synonyms, swap, deletion or backTranslation",
        ),
    )

    @property
    def sources(self) -> dict[str, Source]:
        """Every source that is given, by its field below this object."""
        given = {"synonyms.source": self.synonyms.source} if self.synonyms else {}
        if self.back_translation:
            both = self.back_translation
            given |= {"backTranslation.forward": both.forward, "backTranslation.backward": both.backward}
        return given


class Augmentation(ApiModel):
    """Random changes of training samples."""

    image: ImageAugmentation | None = None
    """Changes of images."""
    text: TextAugmentation | None = None
    """Changes of texts. For text-classification and text-regression."""


_TEXT_TASKS = ("text-classification", "text-regression")
"""Tasks whose target a changed text still fits; to a language model the text is the target."""


def _goes_with(field: str, tasks: str, *, cel: str, check: Callable[[str], bool]) -> Rule:
    """A rule of the spec: the field ``field`` of ``spec.data.augmentation`` goes with some tasks only."""
    path = ["data", "augmentation", *field.split(".")]
    given = " && ".join(f"has(self.{'.'.join(path[:end])})" for end in range(2, len(path) + 1))

    def is_given(spec: Any) -> bool:
        for name in path:
            spec = getattr(spec, name)
            if spec is None:
                return False
        return True

    return Rule(
        cel=f"!({given}) || {cel}",
        check=lambda spec: not is_given(spec) or check(spec.task),
        message=f"goes with task {tasks} only",
        field=".".join(path),
    )


def _mixes(field: str) -> Rule:
    return _goes_with(
        field,
        "image-classification",
        cel="self.task == 'image-classification'",
        check=lambda task: task == "image-classification",
    )


AUGMENTATION_RULES = (
    _goes_with(
        "image",
        "image-… or object-detection",
        cel="self.task.startsWith('image-') || self.task == 'object-detection'",
        check=lambda task: task.startswith("image-") or task == "object-detection",
    ),
    _goes_with(
        "text",
        " or ".join(_TEXT_TASKS),
        cel=f"self.task in {list(_TEXT_TASKS)}",
        check=lambda task: task in _TEXT_TASKS,
    ),
    _mixes("image.mixup"),
    _mixes("image.cutmix"),
)
"""Rules of the whole spec on what is changed for which task."""
