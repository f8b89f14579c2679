"""Predictions whose intervals are compared: boxes of images, and images with their texts."""

import numpy as np
import torch

from finetune_api.intervals import Intervals
from finetune_trainer.box_resamples import BoxResamples, Kind
from finetune_trainer.families import Bootstrap
from finetune_trainer.retrieval import RECALLS, Recall, ranks
from finetune_trainer.task import Target


class Alone:
    """The group of one process."""

    rank, size = 0, 1

    def add_up(self, _tensor):
        """Nothing to add."""

    def gather(self, value):
        """Ours."""
        return [value]


class Joined(Alone):
    """Processes of ``torch.distributed``."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def add_up(self, tensor):
        """Over all ranks."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def gather(self, value):
        """Of all ranks."""
        gathered = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(gathered, value)
        return gathered


def image(found, there, *, seed):
    """Boxes that were found in an image, about half of them near an object, and objects of 3 classes."""
    random = torch.Generator().manual_seed(seed)

    def boxes(count):
        corner = torch.rand(count, 2, generator=random) * 60
        return torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=random) * 20], dim=1)

    objects = {"boxes": boxes(there), "labels": torch.randint(0, 3, (there,), generator=random)}
    guess = {"boxes": boxes(found), "labels": torch.randint(0, 3, (found,), generator=random)}
    for place in range(min(found, there)):
        if torch.rand(1, generator=random) < 0.7:
            guess["boxes"][place] = objects["boxes"][place] + torch.randn(4, generator=random) * 2
            guess["labels"][place] = objects["labels"][place]
    return guess | {"scores": torch.rand(found, generator=random)}, objects


def images(count):
    """As many, some without objects and some in which nothing was found."""
    random = np.random.default_rng(count)
    return [image(int(random.integers(0, 9)), int(random.integers(0, 6)), seed=index) for index in range(count)]


def taken(made, wanted, *, indices=None):
    """Resamples that have taken these images in, two at a time."""
    resamples = BoxResamples(wanted)
    indices = np.arange(len(made)) if indices is None else indices
    for start in range(0, len(made), 2):
        found, there = zip(*made[start : start + 2], strict=True)
        resamples.update(found, there, indices[start : start + 2])
    return resamples


def resampled_boxes(made, wanted):
    """map and map50 of each resample, and of the images as they are: (2, B + 1)."""
    seen = []

    class Watching(Alone):
        def add_up(self, tensor):
            seen.append(tensor)

    taken(made, wanted).intervals({"map": 0.0, "map50": 0.0}, 0.9, Watching())
    return seen[0]


def box_intervals(made, exact, wanted):
    """By metric."""
    return taken(made, wanted).intervals(exact, wanted.confidence, Alone())


def most_at_once(*, boxes, resamples):
    """Bytes of the weights of one class's boxes in the largest block of resamples."""
    kind = Kind(torch.zeros(boxes), torch.zeros(boxes, 10), torch.zeros(1))
    blocks = list(BoxResamples(Intervals(resamples=resamples))._blocks(np.arange(10), [kind]))
    assert sum(map(len, blocks)) == resamples
    return max(map(len, blocks)) * boxes * 8


def pairs(count, *, texts_each=1):
    """Embeddings (N, 8) of images and of their texts, and ids (N, 3): image, text, index in the part."""
    random = torch.Generator().manual_seed(count)
    image_of = torch.arange(count).repeat_interleave(texts_each)
    shown = torch.randn(count, 8, generator=random)
    texts = shown[image_of] + 1.2 * torch.randn(len(image_of), 8, generator=random)
    numbers = torch.arange(len(image_of))
    return shown[image_of], texts, torch.stack([image_of, numbers, numbers], dim=1)


def ranks_of(seen, texts, ids):
    """Metric → the rank of every query, and the image that it is, or is of."""
    first = np.unique(ids[:, 0].numpy(), return_index=True)[1]
    both = ids[:, :2]
    return {
        "textRecall": (ranks(seen[first], texts, both).numpy(), ids[first, 0].numpy()),
        "imageRecall": (ranks(texts, seen[first], both.flip(1)).numpy(), ids[:, 0].numpy()),
    }


def recalled(seen, texts, ids):
    """The metric that has taken these pairs in."""
    recall = Recall()
    if len(ids):
        recall.update({"images": seen, "texts": texts}, {"pairs": ids})
    return recall


def recall_intervals(seen, texts, ids, wanted):
    """All recalls, and their intervals."""
    recall, bootstrap = recalled(seen, texts, ids), Bootstrap(Target.PAIRS, 0, wanted)
    exact = recall.compute()
    bootstrap.update_queries(recall.queries())
    return exact, bootstrap.intervals(exact, Alone())


def intervals_of_rank(rank, world_size, *shares):
    """Intervals of boxes and recalls of the same samples, however many are this rank's: one dict a sharing."""
    group, wanted, found = Joined(rank, world_size), Intervals(resamples=200), []
    every, (seen, texts, ids) = images(25), pairs(25)
    for share in shares:
        own = np.arange(25)[sum(share[:rank]) : sum(share[: rank + 1])]
        bootstrap = Bootstrap(Target.BOXES, 0, wanted)
        for index in own:
            here, there = every[index]
            losses = torch.zeros(1, 2)  # of the pass, as detection has them
            bootstrap.update([here], [there], losses, losses, np.array([index]))
        one = bootstrap.intervals({"map": 0.2, "map50": 0.3, "loss": 1.0}, group)
        recall, other = recalled(seen[own], texts[own], ids[own]), Bootstrap(Target.PAIRS, 0, wanted)
        exact = recall.compute()
        assert exact.keys() == set(RECALLS)
        if rank == 0:
            other.update_queries(recall.queries())
        one |= other.intervals(exact, group)
        one["recalls"] = exact
        found.append(one)
    return found
