"""``python -m finetune_operator``."""

import gc
import json
import logging
import sys
import time
from functools import partial

from finetune_operator.gathering import run
from finetune_operator.serve import serve
from finetune_operator.settings import Settings, parse_settings

GC_THRESHOLD = 20_000
"""New containers before the collector runs; Python's own is 700."""


class _JsonLines(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def main() -> int:
    """Run until asked to end; returns the exit code."""
    settings = parse_settings()
    _set_up_logging(settings)
    # What is imported stays, and what a look leaves behind hardly has cycles: looking for them less often saves CPU.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        run(partial(serve, settings))
    except Exception:
        logging.getLogger("finetune_operator").exception("The operator cannot go on")
        return 1
    return 0


def _set_up_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter = _JsonLines(datefmt="%Y-%m-%dT%H:%M:%SZ") if settings.log_format == "json" else plain
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # kopf tells of every event it handles.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("finetune_operator").setLevel(logging.DEBUG if settings.verbose else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
