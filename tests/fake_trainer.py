"""A trainer without torch that keeps the wiring contract: what a worker is started as in tests of the local cluster.

The variable FAKE_TRAINER holds a JSON list with a script for each attempt; attempts beyond it run to their end:
  fail_at, exit_code, message   end at a step with a code
  cause                         instead of the code's own
  hold_at                       stand still at a step until SIGTERM, and leave RUN/held
  kill_at                       SIGKILL itself at a step
  deaf                          ignore SIGTERM
  linger                        seconds that an orphan takes to leave
  leave_child                   leave a process behind
  workers                       other scripts, by worker
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOTAL = 20
SAVES_EVERY = 5
STEP_SECONDS = 0.02
ACCURACY = 0.9
RUN = Path(os.environ["FINETUNE_RUN"])
SCRATCH = Path(os.environ["FINETUNE_SCRATCH"])
ATTEMPT = int(os.environ["FINETUNE_ATTEMPT"])
WORKER = int(os.environ["FINETUNE_WORKER"])
CAUSES = {64: "Configuration", 65: "Configuration", 70: "Application", 75: "Infrastructure", 143: "Preempted"}


class Trainer:
    def __init__(self, script):
        self.script = script
        self.step = self.resumed = self.newest_checkpoint()
        self.asked_to_leave = False
        self.parent = os.getppid()
        signal.signal(signal.SIGTERM, self.on_terminate)

    def on_terminate(self, *_):
        self.asked_to_leave = not self.script.get("deaf")

    def newest_checkpoint(self):
        return max((int(path.name[5:]) for path in (RUN / "checkpoints").glob("step-*")), default=0)

    def save(self):
        (RUN / "checkpoints" / f"step-{self.step:012}").mkdir(parents=True, exist_ok=True)

    def report(self):
        now = datetime.now(UTC).isoformat()
        saved = self.newest_checkpoint()
        return {
            "stage": "Training",
            "attempt": ATTEMPT,
            "progress": {
                "step": self.step,
                "totalSteps": TOTAL,
                "epoch": self.step / 10,
                "percent": 100 * self.step / TOTAL,
                "samplesPerSecond": 123.4,
                "etaSeconds": 5.0,
                "time": now,
            },
            "metrics": {"trainLoss": 1 / (1 + self.step), "accuracy": 0.5},
            "resumedFromStep": self.resumed,
            **({"lastCheckpoint": {"step": saved, "path": str(RUN), "time": now}} if saved else {}),
        }

    def run(self):
        while self.step < TOTAL:
            self.look_around()
            time.sleep(STEP_SECONDS)
            self.step += 1
            print(f"step {self.step}", flush=True)
            if self.step % SAVES_EVERY == 0 and WORKER == 0:
                self.save()
                self.evaluate()
            self.obey_script()

    def evaluate(self):
        line = {"kind": "evaluation", "step": self.step, "epoch": self.step / 10, "metrics": {"accuracy": 0.5}}
        with (RUN / "history.jsonl").open("a") as file:
            file.write(json.dumps(line | {"improved": True}) + "\n")

    def obey_script(self):
        if self.step == self.script.get("fail_at"):
            leave(self, self.script.get("exit_code", 70), self.script.get("message", "as the script has it"))
        if self.step == self.script.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step == self.script.get("hold_at"):
            (RUN / "held").touch()
            while True:
                self.look_around()
                time.sleep(0.01)

    def look_around(self):
        orphan = os.getppid() != self.parent
        if orphan:
            time.sleep(self.script.get("linger", 0))
        if orphan or self.asked_to_leave:
            if WORKER == 0:
                self.save()
            leave(self, 143, f"step {self.step} is saved")


def leave(trainer, code, message):
    told = {"exitCode": code, "message": message, "step": trainer.step}
    cause = trainer.script.get("cause") if code == trainer.script.get("exit_code") else None
    if cause or code in CAUSES:
        told["cause"] = cause or CAUSES[code]
    if WORKER == 0:
        told["report"] = trainer.report()
        if code == 0:
            told["result"] = {
                "reason": "Completed",
                "model": str(RUN / "model"),
                "report": str(RUN / "report.html"),
                "metrics": {"accuracy": ACCURACY},
            }
    Path(os.environ["FINETUNE_TERMINATION_LOG"]).write_text(json.dumps(told))
    print(f"leaves with {code}: {message}", flush=True)
    os._exit(code)


def serve(trainer):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(trainer.report()).encode()
            self.send_response(200 if self.path == "/progress" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    host, _, port = os.environ["FINETUNE_PROGRESS_ADDRESS"].rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (SCRATCH / "progress.address").write_text("{}:{}".format(*server.server_address))


def main():
    scripts = json.loads(os.environ.get("FAKE_TRAINER", "[]"))
    script = scripts[ATTEMPT - 1] if len(scripts) >= ATTEMPT else {}
    script = script.get("workers", {}).get(str(WORKER), script)
    trainer = Trainer(script)
    if script.get("leave_child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (RUN / "child").write_text(str(child.pid))
    if WORKER == 0:
        serve(trainer)
    trainer.run()
    leave(trainer, 0, "")


if __name__ == "__main__":
    main()
