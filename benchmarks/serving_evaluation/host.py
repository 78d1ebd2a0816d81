"""``python -m benchmarks.serving_evaluation.host CONFIG.json``: ``vessels serve`` in an emulator.

As the command does it, with enclaves in the EPC of an emulator that runs already. The file says
``command`` (what starts an enclave), ``models`` (sealed files by name), ``epc_size`` and ``slots``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.serving_evaluation.emulated import Emulated
from vessels.errors import UsageError
from vessels.listening import bound_socket, run_loop
from vessels.schedule.model import Machine
from vessels.serve.app import Site
from vessels.serve.config import ModelSettings
from vessels.serve.environment import Tools
from vessels.serve.host import Host
from vessels.serve.keys import InsecureKeyFiles
from vessels.serve.limits import Limits
from vessels.serve.logs import Style, event, use_server_log
from vessels.serve.metrics import Metrics
from vessels.serve.model import ServedModel
from vessels.serve.server import serve


def main() -> None:
    """Serve until told to stop. Raises :class:`UsageError` where a model cannot be served."""
    config = json.loads(Path(sys.argv[1]).read_text())
    use_server_log(Style.JSON)
    models = {name: Path(path) for name, path in config["models"].items()}
    limits = Limits()
    machine = Machine(len(os.sched_getaffinity(0)), config["epc_size"])
    backend = Emulated(config["command"])
    keys = InsecureKeyFiles.load(path.with_suffix(".key") for path in models.values())
    tools = Tools(backend, keys, limits, Metrics())
    served = [
        ServedModel(
            ModelSettings(name, path, slots=config["slots"]),
            backend=backend,
            limits=limits,
            machine=machine,
        )
        for name, path in models.items()
    ]
    bound = bound_socket("127.0.0.1", 0)

    async def run() -> None:
        host = Host(served, machine, tools)
        event("capacity", epc_size=machine.epc_size or "none", cores=machine.core_count)
        await serve(Site(host, limits, tools.metrics), bound)

    run_loop(run())


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
