"""A whole run in this process, from the first file read to the last file written."""

from typing import Any
from unittest import mock

from accelerate.state import AcceleratorState

from finetune_api.status import Result
from finetune_trainer import run as running
from finetune_trainer.history import History
from finetune_trainer.run import Process


def whole_run(process: Process) -> Result:
    """What ``finetune_trainer.run.run`` returns on rank 0; what a process leaves open when it ends is closed."""
    opened: list[History] = []

    def keep(*arguments: Any, **named: Any) -> History:
        opened.append(History(*arguments, **named))
        return opened[-1]

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with mock.patch.object(running, "History", keep):
            result = running.run(process)
    finally:
        for history in opened:
            history.close()
    assert result is not None
    return result
