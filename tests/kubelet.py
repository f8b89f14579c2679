"""A kubelet's side of ``pods/log``: all of a node that a control plane without one needs to hand out logs."""

import json
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cluster.certificates import Authority

ADDRESS = "127.0.0.1"


class Kubelet:
    """Logs by the pod's name: lines with their times, whether the container has ended, where a stream breaks."""

    def __init__(self):
        self.lines: dict[str, list[str]] = {}
        self.ended: set[str] = set()
        self.breaks: dict[str, int] = {}
        """So many lines into the first stream of a pod it breaks."""
        self.asked: list[dict[str, str]] = []

    def write(self, pod, *texts, ended=False):
        """The container prints, a line a millisecond."""
        known = self.lines.setdefault(pod, [])
        for text in texts:
            known.append(f"2030-01-01T00:00:00.{len(known):03d}000001Z {text}")
        if ended:
            self.ended.add(pod)

    def serve(self, pod, query, send):
        """Answer one request as a kubelet does."""
        self.asked.append({"pod": pod, **query})
        sent = len(self.lines.get(pod, ())) - int(query.get("tailLines", 1_000_000))
        sent, deadline = max(sent, 0), time.monotonic() + 30
        while time.monotonic() < deadline:
            for line in self.lines.get(pod, ())[sent:]:
                sent += 1
                if self.breaks.get(pod) == sent - 1:
                    del self.breaks[pod]
                    raise ConnectionAbortedError
                stamp, _, text = line.partition(" ")
                if "sinceTime" in query and at(stamp) < at(query["sinceTime"]):
                    continue
                send(f"{line if query.get('timestamps') == 'true' else text}\n".encode())
            if "follow" not in query or pod in self.ended:
                return
            time.sleep(0.05)


def at(stamp):
    return datetime.fromisoformat(stamp)


@contextmanager
def kubelet_of(cluster, node, folder):
    """The kubelet of a new node of ``cluster``; pods that name the node in their spec have logs."""
    kubelet = Kubelet()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = urlsplit(self.path)
            pod = asked.path.split("/")[3]
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                kubelet.serve(pod, {name: values[0] for name, values in parse_qs(asked.query).items()}, self.send)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

        def send(self, data):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def log_message(self, *_):
            pass

    Handler.protocol_version = "HTTP/1.1"
    identity = Authority(folder / "kubelet").issue("kubelet", "kubelet", addresses=(f"IP:{ADDRESS}",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    server = ThreadingHTTPServer((ADDRESS, 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    status = {
        "addresses": [{"type": "InternalIP", "address": ADDRESS}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_address[1]}},
    }
    patch = f"--patch={json.dumps({'status': status})}"
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", patch)
    try:
        yield kubelet
    finally:
        cluster.kubectl("delete", "node", node, "--wait=false")
        server.shutdown()
        server.server_close()
        thread.join()
