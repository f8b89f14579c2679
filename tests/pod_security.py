"""Pod Security's ``restricted`` level, baseline included, as a table.

Upstream: https://kubernetes.io/docs/concepts/security/pod-security-standards/ (the rules for Linux).
"""

VOLUME_TYPES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = {"RuntimeDefault", "Localhost"}
PROFILES = {"RuntimeDefault", "Localhost"}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}

# control → (spec of a pod, container with the pod's security context below its own) → whether it is met
CONTROLS = {
    "host namespaces": lambda pod, _: not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
    "privileged": lambda _, one: not context(one).get("privileged"),
    "host process": lambda _, one: not context(one).get("windowsOptions", {}).get("hostProcess"),
    "host ports": lambda _, one: not any(port.get("hostPort") for port in one.get("ports", [])),
    "AppArmor": lambda _, one: context(one).get("appArmorProfile", {"type": "RuntimeDefault"})["type"] in PROFILES,
    "SELinux": lambda _, one: (
        context(one).get("seLinuxOptions", {}).get("type", "") in SELINUX_TYPES
        and not {"user", "role"} & context(one).get("seLinuxOptions", {}).keys()
    ),
    "/proc": lambda _, one: context(one).get("procMount", "Default") == "Default",
    "sysctls": lambda pod, _: not pod.get("securityContext", {}).get("sysctls"),
    "volume types": lambda pod, _: all(volume.keys() - {"name"} <= VOLUME_TYPES for volume in pod.get("volumes", [])),
    "privilege escalation": lambda _, one: one.get("securityContext", {}).get("allowPrivilegeEscalation") is False,
    "non-root": lambda _, one: context(one).get("runAsNonRoot") is True,
    "non-root user": lambda _, one: context(one).get("runAsUser") != 0,
    "seccomp": lambda _, one: context(one).get("seccompProfile", {}).get("type") in SECCOMP,
    "capabilities": lambda _, one: (
        "ALL" in one.get("securityContext", {}).get("capabilities", {}).get("drop", [])
        and set(one["securityContext"]["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"}
    ),
}


def context(container):
    """The container's security context over its pod's."""
    return container["podSecurityContext"] | container.get("securityContext", {})


def violations(pod) -> list[str]:
    """The controls that the spec of a pod does not meet."""
    containers = [*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])]
    whole = [{**container, "podSecurityContext": pod.get("securityContext", {})} for container in containers]
    return [name for name, holds in CONTROLS.items() if not all(holds(pod, container) for container in whole)]
