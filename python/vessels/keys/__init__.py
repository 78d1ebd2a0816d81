"""Keys: the model owner's key service, its encrypted store, and the host's side of key release.

:mod:`~vessels.keys.store` keeps keys encrypted, :mod:`~vessels.keys.release` decides who gets one,
:mod:`~vessels.keys.app` speaks HTTP, :mod:`~vessels.keys.client` asks. The specification is
``docs/key-release.md``.
"""
