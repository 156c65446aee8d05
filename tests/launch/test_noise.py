"""Noise of Ray's C++ core is hidden; all else that is written to stderr passes."""

import os

import pytest

from tips_ray.launch.noise import noise_hidden, quietly_begun

NOISE = (
    b"[2026-11-30 00:41:37,788 E 32727 737] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(X))' and "
    b"ID: '6af6' has constructor arguments in the object store and max_restarts > 0. If the arguments are lost, ...\n"
)
ERROR = b"[2026-11-30 00:41:37,788 E 32727 737] core_worker.cc:99: The raylet is dead\n"


def test_the_noise_is_hidden_and_errors_pass_in_order(capfd):
    with noise_hidden():
        os.write(2, b"before\n" + NOISE + ERROR)
        os.write(2, b"without an end")
    os.write(2, b"\n" + NOISE)
    assert capfd.readouterr().err.encode() == b"before\n" + ERROR + b"without an end\n" + NOISE


def test_only_the_first_item_is_made_quietly_and_its_error_is_raised(capfd):
    def items():
        for number in range(2):
            os.write(2, NOISE)
            yield number

    assert list(quietly_begun(items())) == [0, 1] and list(quietly_begun([])) == []
    assert capfd.readouterr().err.encode() == NOISE
    with pytest.raises(ZeroDivisionError):
        next(quietly_begun(1 // 0 for _ in range(1)))
    os.write(2, NOISE)
    assert capfd.readouterr().err.encode() == NOISE
