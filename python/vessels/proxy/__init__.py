"""A proxy on the client's own machine: the Open Inference Protocol in, sealed requests out.

Local programs speak the protocol (version 2, REST and gRPC) as to any inference server. The proxy
attests the enclave, encrypts to it and forwards; what leaves this machine is sealed. What comes to
the proxy is not, so it listens on this machine alone.

:mod:`~vessels.proxy.gateway` is what both ways in share, :mod:`~vessels.proxy.rest` and
:mod:`~vessels.proxy.rpc` are the two, :mod:`~vessels.proxy.run` runs them.
"""
