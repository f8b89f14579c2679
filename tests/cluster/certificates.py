"""A certificate authority of a cluster's own, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

DAYS = "30"
CONFIGURATION = "[req]\ndistinguished_name = name\n[name]\n"
"""Of openssl: nothing of the machine's own configuration may end up in a certificate."""


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """The authority in ``folder``; made there at first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = Identity(folder / "ca.crt", folder / "ca.key")
        if not self.root.certificate.exists():
            folder.mkdir(parents=True, mode=0o700)
            (folder / "openssl.cnf").write_text(CONFIGURATION)
            extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
            self._request(self.root, "/CN=cluster-ca", extensions, [])

    def issue(self, name: str, user: str, *, groups: tuple[str, ...] = (), addresses: tuple[str, ...] = ()) -> Identity:
        """A certificate for ``user`` in ``groups``; with ``addresses`` (``DNS:…``, ``IP:…``) a server's as well."""
        made = Identity(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        if made.certificate.exists():
            return made
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            f"extendedKeyUsage=clientAuth{',serverAuth' if addresses else ''}",
            "authorityKeyIdentifier=keyid",
        ]
        if addresses:
            extensions.append(f"subjectAltName={','.join(addresses)}")
        self._request(made, subject, extensions, ["-CA", str(self.root.certificate), "-CAkey", str(self.root.key)])
        return made

    def _request(self, made: Identity, subject: str, extensions: list[str], signer: list[str]) -> None:
        command = ["openssl", "req", "-x509", "-config", str(self._folder / "openssl.cnf"), "-days", DAYS]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject, *signer]
        for extension in ["subjectKeyIdentifier=hash", *extensions]:
            command += ["-addext", extension]
        command += ["-keyout", str(made.key), "-out", str(made.certificate)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"openssl could not make {made.certificate}: {done.stderr}")
