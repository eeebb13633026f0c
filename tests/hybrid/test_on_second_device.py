from __future__ import annotations

from support.second_device_run import FILES, default_and_slow, needs_a_device, run_there


@needs_a_device
@default_and_slow
def test_it_does_there_what_it_does_on_the_cpu(marked: str) -> None:
    done = run_there(FILES["hybrid"], marked)
    none_is_marked = marked == "slow" and done.returncode == 5
    assert done.returncode == 0 or none_is_marked, done.stdout[-6000:] + done.stderr[-2000:]
