"""Serve a model to editors and to clients of OpenAI's interface: llama.cpp's own server on the converted model.

python serve.py --model_path tiny
curl http://127.0.0.1:8012/v1/completions -d '{"prompt": "def add(a, b):", "max_tokens": 16}'

/infill completes at a cursor in the middle, for models that know marker words for it; /v1/completions completes from
left to right, streaming if asked; /health answers once the model is loaded.
"""

import ipaddress
import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from common.command import Flags, InputError, flag, parse_flags, run_command

KEY_VARIABLE = "AUTOCODER_API_KEY"


@dataclass
class ServeFlags(Flags):
    """Flags of serve.py."""

    model_path: str = flag("", "a run folder, a model folder, a known name or a Hub id; else the newest run, else tiny")
    host: str = flag("127.0.0.1", "address to listen on; other machines can reach it only with a key")
    port: int = flag(
        8012, "port to listen on; 8012 is what llama.vim and llama.vscode expect", at_least=1, at_most=65535
    )
    api_key: str = flag("", f"file with the key that clients must send; else the variable {KEY_VARIABLE} names the key")
    context: int = flag(
        4096,
        "most tokens of a request, at most what the model has; all requests under way share them",
        at_least=64,
        at_most=1_000_000,
    )
    type: str = flag("q8_0", "how weights are stored: 8 bits, or f16", choices=("q8_0", "f16"))


def main() -> None:
    flags = parse_flags(ServeFlags, __doc__)
    key = read_key(flags.api_key)
    if not key and not is_loopback(flags.host):
        raise InputError(
            f"--host {flags.host}: other machines could use it; give a key with --api_key FILE or {KEY_VARIABLE}"
        )
    check_port(flags.host, flags.port)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    _servers = start(flags, key)  # they listen as long as they are referred to
    while not stopped.wait(1):  # a thread of llama.cpp's may get the signal, which this one then sees when it wakes
        pass
    print("stopped", flush=True)
    os._exit(0)  # the servers' threads would finish the requests under way first, for minutes perhaps


def read_key(file: str) -> str:
    """The key of the file, or of the environment; empty where there is neither.

    Raises:
        InputError: a file without a key in it.
    """
    if not file:
        return os.environ.get(KEY_VARIABLE, "")
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api_key {file}: cannot be read ({error}); name a file that holds the key") from None
    if not key or any(character.isspace() for character in key):
        raise InputError(f"--api_key {file}: must hold a key, one word")
    return key


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Raises InputError where nothing can listen there; llama.cpp would only say that it failed."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # as llama.cpp does: a port is free again as soon as its server has ended
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise InputError(f"{host}:{port}: {error.strerror or error}; choose another --host or --port") from None


def start(flags: ServeFlags, key: str) -> list:
    """Load the model, listen, and say how to use it; returns what listens."""
    from common.model_files import find_pretrained, newest_run
    from completion.engines.llama_server import load_library, set_threads
    from completion.gguf_export.errors import CannotConvert
    from completion.gguf_export.gguf_cache import converted
    from completion.tokens import Vocabulary, context_length
    from serving.relay import InfillRelay

    path = flags.model_path or newest_run()
    folder = find_pretrained(path)
    try:
        library = load_library()
        file = converted(folder, flags.type)
    except ImportError:
        raise InputError("serve.py needs xllamacpp: pip install xllamacpp") from None
    except CannotConvert as error:
        raise InputError(f"{folder}: llama.cpp cannot run it: {error}") from None
    address = f"http://{f'[{flags.host}]' if ':' in flags.host else flags.host}:{flags.port}"
    params = library.CommonParams()
    params.model.path, params.model_alias = str(file), {Path(path).name}
    params.api_keys = [key] if key else []
    vocabulary = Vocabulary.load(folder)
    fills_in = bool(vocabulary.fim_words)
    params.hostnames, params.port = (["127.0.0.1"], 0) if fills_in else ([flags.host], flags.port)
    # Pages of other origins get no answer that their browser would show them.
    params.cors_origins, params.cors_credentials = address, False
    params.ui = params.endpoint_slots = params.warmup = params.fit_params = False
    set_threads(params, file)
    params.n_ctx, params.n_parallel, params.kv_unified = flags.context, 4, True
    # Of a longer file /infill takes n_batch tokens around the cursor, and of other files what leaves n_predict twice.
    context = min(flags.context, context_length(folder))
    params.n_batch, params.n_predict = min(2048, context // 2), context // 8
    params.n_cache_reuse = 32  # an editor's next request has lost some lines of the last one's beginning
    params.cache_ram_mib = 0  # else prompts of earlier requests are kept, up to 8 GiB of them
    params.verbosity = 0
    servers = [library.Server(params)]
    if fills_in:
        upstream = ("127.0.0.1", int(servers[0].listening_address.rpartition(":")[2]))
        relay = InfillRelay((flags.host, flags.port), upstream, vocabulary, params.n_batch)
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        servers.append(relay)
    print(usage(path, address, bool(key), fills_in), flush=True)
    return servers


def usage(name: str, address: str, has_key: bool, fills_in: bool) -> str:
    key = "  (clients must send the key)" if has_key else ""
    cursor = f"""
  Vim, Neovim   llama.vim:     let g:llama_config = {{'endpoint_fim': '{address}/infill',
                                 \\ 'n_prefix': 36, 'n_suffix': 4, 'ring_n_chunks': 0, 'stop_strings': ["\\n\\n"]}}
  VS Code       llama.vscode:  "llama-vscode.endpoint": "{address}\""""
    if not fills_in:
        cursor = """
  llama.vim, llama.vscode: not with this model, which knows no marker words; `train.py --fim_rate` teaches them"""
    return f"""\
{name} on {address}{key}; Ctrl-C stops{cursor}
  VS Code       Continue:      provider: openai, apiBase: {address}/v1, roles: [autocomplete]
  Zed           edit_predictions: {{"provider": "open_ai_compatible_api", "api_url": "{address}/v1/completions"}}
  any client    OPENAI_BASE_URL={address}/v1"""


if __name__ == "__main__":
    run_command(main)
