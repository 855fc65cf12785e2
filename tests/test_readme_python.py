"""The Python example of the README runs as it stands there."""

import re

from conftest import ROOT


def test_readme_example(project):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (project.folder / "example.py").write_text(example.replace("max_steps=20", "max_steps=2"), encoding="utf-8")
    done = project.run("example.py", timeout=300)
    candidates, result = done.stdout.splitlines(), done.stdout.splitlines()[-1]
    assert float(candidates[0].rpartition(" ")[2]) < 0
    assert "bits_per_byte" in result
    assert (project.folder / "model" / "mine" / "0_GPTSingleHead" / "model.safetensors").is_file()
