"""The command lines of a control plane: etcd, API server, controllers, scheduler. Pure: paths in, arguments out."""

from dataclasses import dataclass
from pathlib import Path

from cluster.certificates import Authority, Identity

SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_OF_API = "10.96.0.1"
ISSUER = "https://kubernetes.default.svc.cluster.local"
ETCD, API, CONTROLLERS, SCHEDULER = NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
CLIENT_LIMITS = ("--kube-api-qps=500", "--kube-api-burst=1000")
"""Of controllers and scheduler: their own client must not be what a measurement measures."""


@dataclass(frozen=True)
class Ports:
    """Where each process listens."""

    etcd: int
    etcd_peer: int
    api: int
    controllers: int
    scheduler: int


@dataclass(frozen=True)
class ControlPlane:
    """All that the processes' arguments follow from."""

    folder: Path
    address: str
    """Where the API server listens; the others listen on loopback."""
    ports: Ports

    @property
    def url(self) -> str:
        """The API server's."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def authority(self) -> Authority:
        """Who signs."""
        return Authority(self.folder / "pki")

    def kubeconfig(self, name: str) -> Path:
        """Where the kubeconfig of a user lies; the administrator's is ``admin``."""
        return self.folder / ("kubeconfig" if name == "admin" else f"pki/{name}.kubeconfig")

    def arguments(self) -> dict[str, list[str]]:
        """Each process's arguments, in the order in which they start."""
        etcd = self._etcd()
        return {ETCD: etcd, API: self._api(), CONTROLLERS: self._controllers(), SCHEDULER: self._scheduler()}

    def _etcd(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.ports.etcd, self.ports.etcd_peer))
        return [
            "--name=cluster",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=cluster={peer}",
            "--quota-backend-bytes=8589934592",
            # A killed process loses nothing by it, a machine that loses its power would.
            "--unsafe-no-fsync",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
            "--log-level=warn",
        ]

    def _api(self) -> list[str]:
        serving = self._serving()
        signing = self._signing()
        kubelet = self.authority.issue("apiserver-kubelet", "apiserver-kubelet", groups=("system:masters",))
        return [
            f"--etcd-servers=http://127.0.0.1:{self.ports.etcd}",
            f"--bind-address={self.address}",
            f"--secure-port={self.ports.api}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.root.certificate}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,PodSecurity",
            "--allow-privileged=true",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={signing.certificate}",
            f"--service-account-signing-key-file={signing.key}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            # A loopback address cannot be an endpoint of the service `kubernetes`.
            *(["--endpoint-reconciler-type=none"] if self.address.startswith("127.") else []),
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
        ]

    def _serving(self) -> Identity:
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        addresses = (f"IP:{self.address}", f"IP:{SERVICE_OF_API}", *(f"DNS:{name}" for name in names))
        return self.authority.issue("apiserver", "kube-apiserver", addresses=addresses)

    def _signing(self) -> Identity:
        return self.authority.issue("service-accounts", "service-accounts")

    def _controllers(self) -> list[str]:
        root = self.authority.root
        return [
            *self._client("controllers", self.ports.controllers),
            f"--root-ca-file={root.certificate}",
            f"--cluster-signing-cert-file={root.certificate}",
            f"--cluster-signing-key-file={root.key}",
            f"--service-account-private-key-file={self._signing().key}",
            "--use-service-account-credentials=true",
        ]

    def _scheduler(self) -> list[str]:
        return self._client("scheduler", self.ports.scheduler)

    def _client(self, user: str, port: int) -> list[str]:
        kubeconfig = self.kubeconfig(user)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
            *CLIENT_LIMITS,
        ]
