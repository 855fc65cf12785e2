"""my_train.ipynb as Colab and Kaggle run it: cloned into an empty folder, its runs kept in another one."""

import os
import shutil
import subprocess
import zipfile

import nbformat
import pytest
from conftest import ROOMS, ROOT, scalars
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SETTINGS = {
    "RECIPE": "report-3",
    "MODEL": "tiny",
    "SOURCE": "stdlib",
    "CONVERT_FLAGS": "--stride 2000 --segment_len 62",
}
TRAIN_FLAGS = "--max_seq_length 64 --evaluation_steps 2 --logging_steps 1 --dev_windows 16 --compile off --max_steps"
RUN = "report-3-tiny-stdlib"


def read_notebook():
    return nbformat.read(ROOT / "my_train.ipynb", as_version=4)


@pytest.fixture
def notebook(tmp_path):
    """Runs cells of the notebook in a new session, whose folder is empty; returns id -> what the cell has shown."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    repository = tmp_path / "repository"
    copied = ["*.py", *(f"{room}/*.py" for room in ROOMS), "requirements.txt", "pretrained/tiny/*"]
    for file in (file for pattern in copied for file in ROOT.glob(pattern)):
        target = repository / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for command in (["init"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e@x.y", "commit", "-m", "first"]):
        subprocess.run(["git", "-C", repository, *command], check=True, capture_output=True)
    home = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    home |= {"AUTOCODER_REPO": str(repository), "AUTOCODER_KEEP": str(tmp_path / "drive")}
    sessions = iter(range(9))

    def run(last_cell: str, **settings: str) -> dict[str, str]:
        session = tmp_path / f"session_{next(sessions)}"
        session.mkdir()
        cells = read_notebook()
        ids = [cell.id for cell in cells.cells]
        cells.cells = cells.cells[: ids.index(last_cell) + 1]
        environment = {f"AUTOCODER_{name}": value for name, value in (SETTINGS | settings).items()}
        # Without a folder of kernels there is the running interpreter's own alone.
        kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        client = NotebookClient(
            cells, km=kernel, timeout=600, shutdown_kernel="immediate", resources={"metadata": {"path": str(session)}}
        )
        client.execute(cleanup_kc=True, env={**os.environ, **home, **environment})
        return {cell.id: "".join(map(shown, cell.outputs)) for cell in cells.cells if cell.cell_type == "code"}

    return run


def shown(output) -> str:
    return output.text if output.output_type == "stream" else "".join(output.data)


def test_is_saved_valid_and_without_outputs():
    cells = read_notebook()
    nbformat.validate(cells)
    assert (cells.nbformat, cells.nbformat_minor) == (4, 5)
    assert not any(cell.outputs or cell.execution_count for cell in cells.cells if cell.cell_type == "code")


def test_two_sessions_make_one_run(notebook, tmp_path):
    output = notebook(read_notebook().cells[-1].id, TRAIN_FLAGS=f"{TRAIN_FLAGS} 4")
    run_folder = tmp_path / "drive" / "model" / RUN
    assert (tmp_path / "session_0" / "AutoCoder" / "model").resolve() == run_folder.parent
    assert "no saved state" in output["train"]
    charts = sorted(file.name for file in (run_folder / "figures").glob("*.png"))
    assert {"train_loss.png", "dev_eval_scores.png"} <= set(charts)
    assert output["charts"].count("image/png") == len(charts)
    assert "bits_per_byte" in output["evaluate"]
    assert output["complete"].count("def bubble_sort(items):\n") == output["complete"].count("--- probability") == 3
    with zipfile.ZipFile(run_folder.with_suffix(".zip")) as archive:
        names = archive.namelist()
    assert f"{RUN}/0_GPTSingleHead/model.safetensors" in names
    assert not any(name.startswith(f"{RUN}/last") for name in names)

    assert "continuing after step 4" in notebook("train", TRAIN_FLAGS=f"{TRAIN_FLAGS} 6")["train"]
    assert list(scalars(run_folder)["loss_train"]) == [1, 2, 3, 4, 5, 6]


def test_a_failing_command_stops_it_with_its_line(notebook):
    with pytest.raises(CellExecutionError) as stopped:
        notebook("install", REPO="/no/such/repository")
    assert "repository '/no/such/repository' does not exist" in str(stopped.value)
    assert "Traceback" not in str(stopped.value)
