"""Lines of a worker's log."""

import logging
import re

import pytest

from tips_ray.train.worker_log import LEVEL, follow_step, log_to_stderr


@pytest.fixture(autouse=True)
def logger_is_put_back():
    logger = logging.getLogger("tips_ray")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1:]
    follow_step(lambda: 0)


def test_a_line_has_time_level_rank_and_step_and_stands_once(capsys):
    log_to_stderr("INFO")
    log_to_stderr("INFO")
    follow_step(lambda: 7)
    logging.getLogger("tips_ray.train.loop").info("checkpoint %s", "saved")
    logging.getLogger("tips_ray.train.loop").debug("detail")
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO rank 0 step 7 tips_ray.train.loop: checkpoint saved\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_the_environment_names_another_level(capsys, monkeypatch):
    monkeypatch.setenv(LEVEL, "error")
    log_to_stderr("INFO")
    logging.getLogger("tips_ray.runs.folder").warning("away")
    assert capsys.readouterr().err == ""


def test_a_level_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv(LEVEL, "loud")
    with pytest.raises(ValueError, match=r"TIPS_RAY_LOG_LEVEL \(loud\) must be one of DEBUG, INFO, WARNING, ERROR"):
        log_to_stderr("INFO")
