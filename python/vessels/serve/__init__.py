"""Serving: the host's side of confidential prediction.

:class:`~vessels.serve.host.Host` runs the environments of many sealed models as
:mod:`vessels.schedule` decides, each an enclave whose life is
:class:`~vessels.serve.environment.Environment`; :func:`~vessels.serve.app.make_app` is what the
network sees, and :func:`~vessels.serve.server.serve` runs both. All of it is on the host and not
trusted: it forwards sealed messages that it cannot read. ``docs/serving.md`` specifies the
interface.
"""
