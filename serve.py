"""Serve a model to editors and to clients of OpenAI's interface, on this computer.

python serve.py --model_path tiny
curl http://127.0.0.1:8012/v1/completions -d '{"prompt": "def add(a, b):", "max_tokens": 16}'

/infill completes at the cursor, with the code before and after it, as interact.py does. /v1/completions completes from
left to right. Both can stream. /health answers as soon as the model is loaded.
"""

import ipaddress
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out
from common.command import Flags, InputError, flag, parse_flags, run_command
from common.files import read_input

KEY_VARIABLE = "AUTOCODER_API_KEY"


@dataclass
class ServeFlags(Flags):
    """Flags of serve.py."""

    model_path: str = flag(
        "", "a run folder, a model folder, a known name or a Hub id; empty: the newest run, else tiny"
    )
    host: str = flag("127.0.0.1", "address to listen on; requests from other machines need a key")
    port: int = flag(
        8012, "port to listen on; 8012 is what llama.vim and llama.vscode expect", at_least=1, at_most=65535
    )
    api_key: str = flag("", f"file with the key that clients must send; empty: the key in ${KEY_VARIABLE}, if any")
    context: int = flag(
        4096,
        "most tokens of all requests that are answered at the same time, at most what the model supports",
        at_least=64,
        at_most=1_000_000,
    )
    repository: str = flag(
        "", "folder of the project: /infill shows the model code from it that resembles the code at the cursor"
    )
    context_tokens: int = flag(
        500,
        "most tokens of other files, also of those that the editor sends, that /infill shows the model; 0: none",
        at_least=0,
        at_most=1_000_000,
    )
    type: str = flag("q8_0", "how weights are stored: with 8 or 16 bits", choices=("q8_0", "f16"))


def main() -> None:
    flags = parse_flags(ServeFlags, __doc__)
    key = read_key(flags.api_key)
    if not key and not is_loopback(flags.host):
        raise InputError(
            f"--host {flags.host}: other machines could connect; give a key with --api_key FILE or {KEY_VARIABLE}"
        )
    from completion.repository.repository import Repository
    from serving.relay import Relay

    relay = Relay(flags.host, flags.port, key)
    repository = Repository(Path(flags.repository) if flags.repository else None)
    engine = load(flags)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    relay.start(engine, repository, flags.context_tokens)
    address = f"http://{f'[{flags.host}]' if ':' in flags.host else flags.host}:{flags.port}"
    print(usage(engine.model_name, address, bool(key), bool(engine.vocabulary.fim_words)), flush=True)
    while not stopped.wait(1):  # if a thread of llama.cpp gets the signal, this one sees it when it wakes up
        pass
    print("stopped", flush=True)
    os._exit(0)  # a usual exit would wait for llama.cpp to finish its requests, perhaps for minutes


def read_key(file: str) -> str:
    """Return the key in the file, or else in the environment; empty if there is none.

    Raises:
        InputError: the file cannot be read, or the key is not one word of ASCII characters.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if not file and not key:
        return ""
    if file:
        key = read_input(Path(file), "name a file that holds the key").decode(errors="replace")
    key = key.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        name = f"--api_key {file}" if file else KEY_VARIABLE
        raise InputError(f"{name}: must hold a key, one word of ASCII letters, digits and signs")
    return key


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(flags: ServeFlags):
    """Load the model. Raises InputError if there is no such model, or llama.cpp cannot run it."""
    from common.model_files import find_pretrained, newest_run, read_config
    from completion.gguf_export.errors import CannotConvert
    from serving.served_engine import ServedEngine

    path = flags.model_path or newest_run()
    folder = find_pretrained(path)
    read_config(folder)
    try:
        return ServedEngine(folder, flags.type, Path(path).resolve().name, flags.context)
    except ImportError:
        raise InputError("serve.py needs xllamacpp: pip install xllamacpp") from None
    except CannotConvert as error:
        raise InputError(f"{folder}: llama.cpp cannot run it: {error}") from None


def usage(name: str, address: str, has_key: bool, knows_infill: bool) -> str:
    """Return how to connect editors and other clients."""
    key = "  (clients must send the key)" if has_key else ""
    no_suffix = (
        "" if knows_infill else "\n  note: this model does not see the code after the cursor; see train.py --fim_rate"
    )
    return f"""\
{name} on {address}{key}; Ctrl-C stops{no_suffix}
  Vim, Neovim   llama.vim:     let g:llama_config = {{'endpoint_fim': '{address}/infill',
                                 \\ 'n_prefix': 36, 'n_suffix': 4}}
  VS Code       llama.vscode:  "llama-vscode.endpoint": "{address}"
  VS Code       Continue:      provider: openai, apiBase: {address}/v1, roles: [autocomplete]
  Zed           edit_predictions: {{"provider": "open_ai_compatible_api", "api_url": "{address}/v1/completions"}}
  any client    OPENAI_BASE_URL={address}/v1"""


if __name__ == "__main__":
    run_command(main)
