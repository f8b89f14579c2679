"""The next token of a text, everywhere in it."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune_api.job import JobSpec
from finetune_trainer.tasks.base import IGNORED, Target, Task


def build(_spec: JobSpec) -> Task:
    """Loss on every token but the first of a text, its end-of-text token among them."""
    return Task(
        name="causal-lm",
        reads="text",
        target=Target.TOKENS,
        auto_class="AutoModelForCausalLM",
        pipeline="text-generation",
        metrics=("perplexity", "tokenAccuracy"),
        monitor="loss",
        losses=token_losses,
        counts=token_counts,
    )


def token_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy summed over each sample's tokens. logits: (n, T, V), target: (n, T); position t predicts t + 1."""
    predicted, wanted = logits[:, :-1], target[:, 1:]
    losses = cross_entropy(predicted.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(wanted.shape).sum(dim=1)


def token_counts(target: Tensor) -> Tensor:
    """Tokens of each sample that are predicted."""
    return (target[:, 1:] != IGNORED).sum(dim=1)
