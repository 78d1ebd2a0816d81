"""The text of a new policy, for a person to read and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from vessels.attestation.roots import Root
from vessels.attestation.verify import Tee

_HEAD = """\
# What evidence is accepted of an enclave before it gets a key or an input.
# Every key is explained in docs/attestation.md; an unknown key is refused.
version = 1
"""

_SIMULATION = """
# INSECURE: evidence under this root proves nothing, and the host reads everything.
# With it no real hardware is accepted. For development and tests only.
insecure_simulation_root = \"\"\"
{pem}\"\"\"
"""

_MODELS = """
# The sealed models that may be opened, by name: the digest of each build,
# as `vessels policy new` computes it.
[models]
{models}
"""

_SGX = """
# An SGX enclave. mr_enclave is the measurement of one build of the software.
# Or take it out and accept every build of a signer: mr_signer = ["…"],
# isv_prod_id = 0, minimum_isv_svn = 1.
[sgx]
mr_enclave = [{measurements}]
"""

_TDX = """
# A TDX guest. mr_td is its firmware, rtmr1 its kernel, rtmr2 its command line
# and initial file system; rtmr0 is the host's configuration, and may be left out.
[tdx]
mr_td = [{measurements}]
rtmr1 = []
rtmr2 = []
"""

_TCB = """
# The state of the platform. A status beside UpToDate should come with the
# advisories (INTEL-SA-…) that one has read and accepts; others are refused.
[tcb]
statuses = ["UpToDate"]
advisories = []
"""


def new_policy(
    models: Mapping[str, Sequence[bytes]],
    *,
    tee: Tee = Tee.SGX,
    measurements: Sequence[bytes] = (),
    insecure_simulation_root: Root | None = None,
) -> str:
    """A policy for ``models`` that open in a ``tee`` with one of ``measurements``.

    Models are the digests of their builds by name. ``measurements`` are of ``mr_enclave`` or
    ``mr_td``. Where one is missing its list stays empty, and the policy is refused until it is
    filled in.
    """
    text = _HEAD
    if insecure_simulation_root is not None:
        text += _SIMULATION.format(pem=insecure_simulation_root.pem)
    # A TOML key in quotes is written as a JSON text is.
    lines = [f"{json.dumps(n, ensure_ascii=False)} = [{_listed(d)}]" for n, d in models.items()]
    text += _MODELS.format(models="\n".join(lines))
    software = _SGX if tee is Tee.SGX else _TDX
    return text + software.format(measurements=_listed(measurements)) + _TCB


def _listed(values: Sequence[bytes]) -> str:
    return ", ".join(f'"{value.hex()}"' for value in values)
