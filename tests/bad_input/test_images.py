import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_input.images import CATALOGUE, MAX_BYTES, MAX_PIXELS, Case

from tips_ray.data.decode import BadImage, decode


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name.replace(" ", "-"))
def test_every_file_shows_the_right_picture_or_is_refused_for_the_right_reason(case: Case):
    if case.refused is not None:
        with pytest.raises(BadImage) as caught:
            decode(case.make(), MAX_BYTES, MAX_PIXELS)
        assert str(caught.value).startswith(case.refused)
        return
    pixels = decode(case.make(), MAX_BYTES, MAX_PIXELS)
    assert pixels.dtype == np.uint8 and pixels.shape == (*case.size, 3)
    assert case.corners is not None
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert np.abs(corners - np.array(case.corners)).max() <= case.tolerance, corners


def test_damaged_files_are_refused_and_raise_nothing_else():
    numbers = np.random.default_rng(0)
    for case in CATALOGUE:
        data = case.make()
        for _ in range(8 if len(data) < 100_000 else 0):
            damaged = np.frombuffer(data or b"\0", np.uint8).copy()
            places = numbers.integers(0, len(damaged), 1 + len(damaged) // 100)
            damaged[places] = numbers.integers(0, 256, len(places))
            decode_or_refuse(damaged.tobytes()[: numbers.integers(1, len(damaged) + 1)])


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_bombs_are_refused_without_memory_for_their_pixels():
    code = """if True:
        import resource
        from bad_input.images import CATALOGUE
        from bad_input.test_images import decode_or_refuse
        files = [case.make() for case in CATALOGUE if case.name.endswith("bomb")]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for file in files:
            decode_or_refuse(file)
        print(len(files), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    files, kilobytes = map(int, result.stdout.split())
    assert files == 4 and kilobytes < 30_000


def decode_or_refuse(data: bytes) -> None:
    """Nothing but a picture or one of the known reasons."""
    try:
        decode(data, MAX_BYTES, MAX_PIXELS)
    except BadImage as error:
        assert error.reason in ("zero bytes", "not an image", "truncated", "corrupt", "too large")
