"""The settings of a real node's programs: pure but for ``write_all``, which writes them to files."""

import json
from pathlib import Path
from typing import Any

import yaml

from cluster.control_plane import ControlPlane
from cluster.kubeconfig import write_kubeconfig

PAUSE_IMAGE = "cluster.test/pause:1"
DOMAIN = "cluster.local"
NEVER_EVICT = {
    "memory.available": "100Mi",
    "nodefs.available": "1%",
    "nodefs.inodesFree": "1%",
    "imagefs.available": "1%",
}


def cgroup(folder: Path) -> str:
    """The cgroup of all pods of the cluster in ``folder``, as a path in each hierarchy."""
    return f"/finetune-{folder.parent.name}-{folder.name}"


def write_all(plane: ControlPlane, home: Path, tools: dict[str, Path], name: str, pods: str) -> None:
    """Write each program's file into ``home``."""
    plugins = tools["containernetworking-plugins"] / "usr/lib/cni"
    (home / "cni").mkdir(exist_ok=True)
    (home / "cni" / "10-cluster.conflist").write_text(json.dumps(network(pods), indent=2))
    (home / "containerd.toml").write_text(containerd(home, plugins, tools["runc"] / "usr/sbin/runc"))
    (home / "resolv.conf").write_text("")
    (home / "kubelet.yaml").write_text(yaml.safe_dump(kubelet(plane, home)))
    # The Node authorizer knows a node by these names.
    write_kubeconfig(plane, "kubelet", f"system:node:{name}", ("system:nodes",))
    proxy_user = write_kubeconfig(plane, "kube-proxy", "system:kube-proxy", ())
    (home / "kube-proxy.yaml").write_text(yaml.safe_dump(kube_proxy(proxy_user, name, pods)))
    (home / "Corefile").write_text(corefile(plane))


def network(pods: str) -> dict[str, Any]:
    """CNI's: a pair of interfaces a pod, so that pods reach each other by routing and Services need no bridge."""
    addresses = {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    ptp = {"type": "ptp", "ipMasq": False, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "cluster", "plugins": [ptp, ports]}


def containerd(home: Path, plugins: Path, runc: Path) -> str:
    """containerd 1.6's configuration.

    ``restrict_oom_score_adj``: without CAP_SYS_RESOURCE runc may not lower it, and dies with "can't get final child's
    PID from pipe: EOF".
    """
    return f"""
version = 2
root = "{home}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{home}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{home}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"""


def kubelet(plane: ControlPlane, home: Path) -> dict[str, Any]:
    """kubelet's configuration: https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": plane.address,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(plane.authority.root.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup(plane.folder),
        "clusterDNS": [plane.address],
        "clusterDomain": DOMAIN,
        "containerRuntimeEndpoint": f"unix://{home}/containerd.sock",
        "enforceNodeAllocatable": [],
        "evictionHard": NEVER_EVICT,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "oomScoreAdj": 0,
        "resolvConf": str(home / "resolv.conf"),
        "serializeImagePulls": False,
    }


def kube_proxy(kubeconfig: Path, name: str, pods: str) -> dict[str, Any]:
    """kube-proxy's configuration; it leaves the kernel's connection tracking as it is."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": pods,
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "hostnameOverride": name,
        "mode": "iptables",
        "oomScoreAdj": 0,
    }


def corefile(plane: ControlPlane) -> str:
    """CoreDNS' configuration: names of the cluster, no others."""
    return f"""
{DOMAIN}:53 in-addr.arpa:53 {{
    bind {plane.address}
    errors
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {plane.kubeconfig("admin")}
        pods insecure
        ttl 2
    }}
}}
"""
