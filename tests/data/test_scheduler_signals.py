"""A scheduler's signal reaches all processes of a job: those that make data go on until their rank has left.

Other processes of the same server are ended by SIGTERM, as multiprocessing does at exit.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import toy_stream

STEPS = 4
SCRIPT = """
import multiprocessing, os, signal, sys, time
from tips_ray.config import RunConfig
from tips_ray.data.local_stream import local_stream

if __name__ == "__main__":
    stream = local_stream(RunConfig.model_validate_json(sys.argv[1]), *sys.argv[2:], None, 0, 0, 1, 1)
    micro_batches = [next(stream)]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
        os.killpg(0, number)
    time.sleep(0.5)
    living = len(multiprocessing.active_children())
    other = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    other.start()
    other.terminate()
    other.join(30)
    print(living, len([*micro_batches, *stream]), other.exitcode)
"""


@pytest.mark.heavy
def test_a_data_process_counts_as_alive_after_a_signal_to_all_processes_and_gives_the_rest(tmp_path):
    given = toy_stream(tmp_path, STEPS)
    (script := tmp_path / "script.py").write_text(SCRIPT)
    words = [given.config.model_dump_json(), given.index_uri, given.tokenizer_uri]
    streams = {"capture_output": True, "text": True, "start_new_session": True, "cwd": Path(__file__).parents[2]}
    done = subprocess.run([sys.executable, str(script), *words], timeout=120, **streams)
    micro_batches = STEPS * given.config.global_batch_images // given.config.images_per_pass
    assert done.stdout.split() == ["1", str(micro_batches), "-15"], done
