"""Cached kernels are recompiled when the files they call change."""

import re
import subprocess
import sys

from tests import ROOT

CALLED = "import numba\n\n@numba.njit(cache=True)\ndef add(x):\n    return x + {}\n"
CALLER = (
    "import numba\nfrom histoblend.data.kernel_cache import recompiled_with\nfrom called import add\n\n"
    "@recompiled_with(numba.njit(cache=True), 'called')\ndef twice(x):\n    return 2 * add(x)\n\n"
    "print(twice(1), sum(twice.stats.cache_hits.values()))\n"
)


def test_a_kernel_is_recompiled_exactly_when_a_sibling_file_changes(tmp_path):
    def run():
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import caller"
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "called.py").write_text(CALLED.format(1))
    assert [run(), run()] == ["4 0\n", "4 1\n"]
    (tmp_path / "called.py").write_text(CALLED.format(1000))
    assert [run(), run()] == ["2002 0\n", "2002 1\n"]


def test_kernels_that_span_files_name_all_of_them():
    phantom = ROOT / "data" / "phantom"
    named = (phantom / "noise.py").read_text().partition("compiled = recompiled_with(")[2].partition("\n)")[0]
    kernels = [path.stem for path in phantom.glob("*.py") if "@compiled" in path.read_text()]
    assert len(kernels) > 3
    assert all(f'"{name}"' in named for name in kernels)
    nuclei = (ROOT / "features" / "handcrafted" / "nuclei.py").read_text()
    files = re.findall(r"^from histoblend\.features\.handcrafted\.(nucle\w+) import", nuclei, re.MULTILINE)
    assert len(files) > 2
    assert all(f'"{name}"' in nuclei for name in files)
