from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from autopeft.search.execution.output import OutputFiles, Tee

SCRIPT = """
import os, sys
from autopeft.search.execution.output import OutputFiles
files = OutputFiles.own()
print("before")
begin = files.ends()
print("python says")
os.write(2, b"a C library says\\n")
print(repr((sorted(files.paths), files.since(begin))), file=sys.__stdout__, flush=True)
"""


def test_a_process_reads_its_own_output_files(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        subprocess.run([sys.executable, "-c", SCRIPT], stdout=out, stderr=err, check=True)
    told = (tmp_path / "out").read_text().splitlines()[-1]
    assert told == repr((["stderr", "stdout"], {"stderr": "a C library says\n", "stdout": "python says\n"}))


def test_one_file_for_both_is_named_once(tmp_path: Path) -> None:
    with (tmp_path / "both").open("wb") as both:
        subprocess.run([sys.executable, "-c", SCRIPT], stdout=both, stderr=both, check=True)
    assert "['stderr and stdout']" in (tmp_path / "both").read_text()


def test_a_pipe_is_no_file() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "([], {})"


def test_only_the_end_of_a_long_output_is_read(tmp_path: Path) -> None:
    path = tmp_path / "err"
    path.write_bytes(b"x" * 300_000 + b"the end")
    found = OutputFiles({"stderr": str(path)}).since({"stderr": 10})
    assert len(found["stderr"]) == 200_000
    assert found["stderr"].endswith("the end")
    path.write_bytes(b"made anew")
    assert OutputFiles({"stderr": str(path)}).since({"stderr": 10_000}) == {"stderr": "made anew"}


def test_files_of_another_machine_are_left_out(tmp_path: Path) -> None:
    files = OutputFiles({"stderr": str(tmp_path / "nothing")})
    assert files.ends() == {}
    assert files.since({}) == {}


def test_a_tee_keeps_the_end_and_rests_where_it_should() -> None:
    tee = Tee()
    with tee.keeping():
        sys.stderr.write("y" * 150_000)
        with tee.resting():
            sys.stderr.write("a display")
        sys.stderr.writelines(["z" * 60_000, "last"])
    sys.stderr.write("after")
    kept = tee.kept["stderr"]
    assert len(kept) == 200_000
    assert kept.endswith("zlast")
    assert "a display" not in kept
