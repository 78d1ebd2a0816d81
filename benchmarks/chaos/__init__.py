"""Failures under load: enclaves, the server and the key service are killed while clients ask.

``python -m benchmarks.chaos`` serves more models than fit the memory, from processes that a
supervisor starts again, kills them at random with SIGKILL, and compares every answer. It says what
became of it, and ends with exit code 1 if anything that must hold (:mod:`~benchmarks.chaos.rules`)
did not.

- :mod:`~benchmarks.chaos.rules`: what must hold, and what did not
- :mod:`~benchmarks.chaos.stage`: models, keys, policy, and questions with right answers
- :mod:`~benchmarks.chaos.parties`: the server and the key service, killed and started again
- :mod:`~benchmarks.chaos.processes`: enclaves, as the kernel sees them
- :mod:`~benchmarks.chaos.asking`: the clients
- :mod:`~benchmarks.chaos.pauses`: when this program itself stood still
- :mod:`~benchmarks.chaos.watching`: the account, compared with the processes there are
- :mod:`~benchmarks.chaos.killing`: who is killed when, and how long it was felt
- :mod:`~benchmarks.chaos.run`: all of it together, and the report
"""
