"""Look after the jobs of a Ray cluster that `tips-ray submit` sent.

  tips-ray jobs list [--all]              jobs, the newest first; --all: those of others too
  tips-ray jobs status JOB                state, times, results, and an exit code for scripts: 0 done, 10 under way,
                                          75 stopped, else that of the failed command
  tips-ray jobs logs JOB [--follow]       what it has printed; --follow until it ends, with the job's exit code
  tips-ray jobs stop JOB [--now]          the run or sweep saves and leaves, and then the job ends; --now: Ray ends it,
                                          which kills after 3 s unless the cluster sets RAY_JOB_STOP_WAIT_TIME_S

JOB is a job's id or the name of its run; then its newest job is meant. --address as of tips-ray submit.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.job_server import JobDetails, JobServer

ACTIONS = ("list", "status", "logs", "stop")
UNDER_WAY = 10
OPTIONS = {"all": ("list",), "follow": ("logs",), "now": ("stop",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray jobs`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("job", nargs="?", metavar="JOB", help="id of the job, or name of its run")
    parser.add_argument("--address", metavar="URL", help="dashboard; default: RAY_API_SERVER_ADDRESS or this machine's")
    parser.add_argument("--wait", type=float, default=120, metavar="SECONDS", help="longest wait for cluster and stop")
    parser.add_argument("--all", action="store_true", help="of list: jobs that tips-ray submit did not send, too")
    parser.add_argument("--follow", action="store_true", help="of logs: until the job ends")
    parser.add_argument("--now", action="store_true", help="of stop: do not ask the run first")


def run(arguments: argparse.Namespace) -> int | None:
    """
    Raises:
        ValueError: there is no such job, or it cannot be asked to stop.
        OSError: the cluster refuses or does not answer.
    """
    _require_arguments(arguments)
    from cluster.job_server import connect

    server = connect(arguments.address, arguments.wait)
    if arguments.action == "list":
        return _list(server, arguments.all)
    job = _job(server, arguments.job)
    if arguments.action == "status":
        return _status(server, job)
    if arguments.action == "logs":
        return _logs(server, job, arguments.follow)
    return _stop(server, job, arguments.now, arguments.wait)


def _require_arguments(arguments: argparse.Namespace) -> None:
    for option, actions in OPTIONS.items():
        if getattr(arguments, option) and arguments.action not in actions:
            raise ValueError(f"--{option} is for {', '.join(actions)}; {arguments.action} does not take it")
    if arguments.action != "list" and not arguments.job:
        raise ValueError(f"{arguments.action} needs JOB, the id of a job; tips-ray jobs list shows them")
    if arguments.action == "list" and arguments.job:
        raise ValueError(f"list takes no job ({arguments.job}); tips-ray jobs status {arguments.job} shows one")


def _job(server: "JobServer", name: str) -> "JobDetails":
    jobs = server.jobs()
    exact = [job for job in jobs if job.submission_id == name]
    found = exact or [job for job in jobs if (job.metadata or {}).get("name") == name]
    if not found:
        raise ValueError(f"{server.address} has no job {name}; tips-ray jobs list shows those it has")
    return found[-1]


def _list(server: "JobServer", is_all: bool) -> None:
    from cluster.environment import CHECK_MARK, OWN
    from tips_ray.words import table

    own = [job for job in server.jobs() if is_all or (job.metadata or {}).get(OWN, CHECK_MARK) != CHECK_MARK]
    if not own:
        print(f"{server.address} has no jobs of tips-ray submit")
        return
    rows = [[str(job.submission_id), _state(job), _command(job), _when(job)] for job in reversed(own)]
    print(table(["job", "state", "command", "started"], rows))


def _status(server: "JobServer", job: "JobDetails") -> int:
    from cluster.following import exit_code, reason

    place = (job.metadata or {}).get("place", "")
    lines = {"job": str(job.submission_id), "state": _state(job), "command": job.entrypoint, "started": _when(job)}
    lines |= {"message": reason(job)}
    lines |= {"results": place, "next": f"tips-ray runs show {place}" if place else ""}
    print("\n".join(f"{name:10} {text}" for name, text in lines.items() if text))
    return exit_code(job) if job.status.is_terminal() else UNDER_WAY


def _logs(server: "JobServer", job: "JobDetails", follows: bool) -> int | None:
    job_id = str(job.submission_id)
    if not follows:
        print(server.log(job_id), end="", flush=True)
        return None
    from cluster.submission import watch

    try:
        return watch(server, job_id, 0, lambda server, last: job_id)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the job {job_id} goes on; tips-ray jobs stop {job_id} ends it") from None


def _stop(server: "JobServer", job: "JobDetails", now: bool, seconds: float) -> int | None:
    from cluster.submission import wait_for_end

    job_id, place = str(job.submission_id), (job.metadata or {}).get("place", "")
    if job.status.is_terminal():
        raise ValueError(f"the job {job_id} has ended ({_state(job)}); there is nothing to stop")
    if place and not now:
        print(_asked(job), flush=True)
        if wait_for_end(server, job_id, seconds):
            return _status(server, server.job(job_id)) and None
        raise ValueError(
            f"the job {job_id} has not ended in {seconds:.0f} s; wait for it (--wait), or end it by tips-ray jobs stop "
            f"{job_id} --now, which loses what was not saved"
        )
    server.stop(job_id)
    if not wait_for_end(server, job_id, seconds):
        raise ValueError(
            f"the job {job_id} is still {_state(server.job(job_id))} after {seconds:.0f} s; Ray ends one that has not "
            "started only once it starts"
        )
    _status(server, server.job(job_id))
    return None


def _asked(job: "JobDetails") -> str:
    """What was asked of the run or the sweep of a job, which saves and leaves."""
    from tips_ray.runs.stop import ask_to_stop, user_here

    facts = job.metadata or {}
    try:
        if facts.get("command") == "sweep":
            from tuning.sweeps.keep import stop_lines

            return "\n".join(stop_lines(facts["place"]))
        return (
            f"asked the run to save and leave ({ask_to_stop(facts['place'], user_here())}); waiting for the job's end"
        )
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{error}; to end the job whether it has saved or not: tips-ray jobs stop {job.submission_id} --now"
        ) from None


def _state(job: "JobDetails") -> str:
    from cluster.following import exit_code
    from tips_ray.errors import RunStopped

    state, code = str(job.status).lower(), exit_code(job)
    if state != "failed":
        return state
    return "stopped, saved" if code == RunStopped.exit_code else f"failed ({code})"


def _command(job: "JobDetails") -> str:
    facts = job.metadata or {}
    is_own = facts.get("place") and "command" in facts and "name" in facts
    return f"{facts['command']} {facts['name']}" if is_own else job.entrypoint[:60]


def _when(job: "JobDetails") -> str:
    from datetime import datetime

    times = [stamp for stamp in (job.start_time, job.end_time) if stamp]
    texts = [
        datetime.fromtimestamp(stamp / 1000).astimezone().isoformat(sep=" ", timespec="seconds") for stamp in times
    ]
    return ", ended ".join(texts)
