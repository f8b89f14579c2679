"""The report page and the model card: what a run came to, for people.

Invariant: both are made from the job and the files of its run folder alone. Any file may be absent or torn: nothing is
raised over what is in them, and what could not be read is said on the page. Neither torch nor transformers is imported.
"""

from finetune_trainer.report.card import write_model_card
from finetune_trainer.report.page import write_report

__all__ = ["write_model_card", "write_report"]
