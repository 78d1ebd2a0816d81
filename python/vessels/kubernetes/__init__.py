"""Kubernetes: sealed models become the manifests of the pods that serve them, in SGX.

A pod is a ``vessels serve`` of one model with one environment, under Gramine. What it asks of its
node is computed from the plan, as the enclave's own size is: trusted memory, which Intel's device
plugin hands out as ``sgx.intel.com/epc``, to the page; cores by the plan's threads; ordinary memory
for the copy of the sealed model and for requests. ``docs/kubernetes.md`` explains every field.

Manifests are plain dictionaries in the words of the Kubernetes API; the tests hold them against
its schemas.

- :mod:`~vessels.kubernetes.cluster`: what is to be served, and what a pod takes
- :mod:`~vessels.kubernetes.manifests`: what is to be applied
"""

from vessels.kubernetes.cluster import Cluster, Deployed, deployed
from vessels.kubernetes.manifests import as_yaml, manifests, quantity

__all__ = ["Cluster", "Deployed", "as_yaml", "deployed", "manifests", "quantity"]
