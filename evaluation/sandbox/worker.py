"""Runs programs one after another, each in a forked child with hard limits. A script that sandbox.py
starts.

It imports almost nothing, so a fork costs about a millisecond and the child holds a few megabytes. Jobs come in as
JSON lines on standard input, verdicts go out as JSON lines on standard output.

What a child may do: compute, import the standard library, use its memory, CPU and wall time up. What it may not:
start processes, signal others, open sockets, load native code, touch files outside the standard library. The bans
are an audit hook, which Python code cannot take off again. They catch what language models write, by accident or by
imitation; a program written to break out of CPython needs a container or a virtual machine around the whole run.
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time

FORBIDDEN = (
    "ctypes.", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn",
    "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.utime",
    "pty.spawn", "shutil.", "signal.pthread_kill", "socket.", "subprocess.Popen", "webbrowser.",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DETAIL_CHARS = 200
REPORT_BYTES = 4096

child = 0  # the process to take down when this one is told to stop


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    reply({"ready": True})
    for line in iter(sys.stdin.buffer.readline, b""):
        job = json.loads(line)
        status, detail = judge(job["source"], job["limits"])
        reply({"status": status, "detail": detail})


def reply(message: dict) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def stop(*_: object) -> None:
    if child:
        kill(child)
    os._exit(0)


def kill(pid: int) -> None:
    """The child's whole session, and the child itself in case it has not yet become a session leader."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            send(pid, signal.SIGKILL)


def judge(source: str, limits: dict) -> tuple[str, str]:
    """Run one program; (status, one line of detail)."""
    global child
    token = os.urandom(16).hex()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        run(source, limits, token, writer)  # never returns
    os.close(writer)
    report, in_time = read(reader, time.monotonic() + limits["seconds"])
    os.close(reader)
    kill(child)
    _, wait_status, used = os.wait4(child, 0)
    child = 0

    said, _, rest = report.partition("\n")
    if said == token:
        status, _, detail = rest.partition("\n")
        return status, detail
    if not in_time:
        return "timeout", f"ran longer than {limits['seconds']:g} s"
    if not os.WIFSIGNALED(wait_status):
        return "failed", f"the process ended with code {os.waitstatus_to_exitcode(wait_status)} before the tests did"
    number = os.WTERMSIG(wait_status)
    if number == signal.SIGXCPU or used.ru_utime + used.ru_stime >= limits["cpu_seconds"]:  # it may ignore SIGXCPU
        return "timeout", f"used more than {limits['cpu_seconds']} s of CPU time"
    return "crashed", f"killed by {signal.Signals(number).name}"


def read(descriptor: int, deadline: float) -> tuple[str, bool]:
    """What the child reported, and whether it let go of the pipe before the deadline."""
    content = b""
    while len(content) < REPORT_BYTES:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return "", False
        chunk = os.read(descriptor, REPORT_BYTES)
        if not chunk:
            break
        content += chunk
    return content.decode(errors="replace"), True


def run(source: str, limits: dict, token: str, writer: int) -> None:
    """In the child: execute the program and report. Only a program that ran to its last line is reported as passed."""
    leave, write, own = os._exit, os.write, os.getpid()  # bound now: the program may replace them
    status, detail = "failed", ""
    try:
        confine(limits)
        module = type(sys)("__main__")  # a real module: dataclasses and pickle look their names up in sys.modules
        sys.modules["__main__"] = module
        sys.argv = ["program"]
        exec(compile(source, "<program>", "exec"), module.__dict__)
        status = "passed"
    except MemoryError:
        status = "memory"
        detail = f"MemoryError: more than {limits['memory'] >> 20} MiB"
    except BaseException as error:  # SystemExit included: leaving before the end is not passing
        detail = describe(error)
    try:
        if status == "memory":  # room to format the report in
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        if os.getpid() == own:
            write(writer, f"{token}\n{status}\n{detail}".encode(errors="replace")[:REPORT_BYTES])
    finally:
        leave(1)


def describe(error: BaseException) -> str:
    """`TypeName: message (line n)`, n being the program's own line that was running."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = " ".join(str(error).split())[:DETAIL_CHARS]
    except BaseException:
        message = "(no message: its __str__ failed)"
    return type(error).__name__ + (f": {message}" if message else "") + (f" (line {line})" if line else "")


def confine(limits: dict) -> None:
    """Own session, no standard streams, resource limits, audit hook. Order matters: the hook forbids the rest."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    lower(resource.RLIMIT_CORE, 0, 0)
    lower(resource.RLIMIT_FSIZE, 0, 0)
    lower(resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"])
    lower(resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1)  # SIGXCPU, and SIGKILL if ignored
    lower(resource.RLIMIT_AS, limits["memory"], None)  # soft only: the report after a MemoryError lifts it again

    import _posixsubprocess

    setattr(_posixsubprocess, "fork_exec", forbidden)  # noqa: B010 - raises no audit event of its own
    readable = (os.path.realpath(os.path.dirname(os.__file__)) + os.sep, "/usr/share/zoneinfo/")
    real, decode = os.path.realpath, os.fsdecode

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            path = real(decode(path))
            if path not in DEVICES and (flags & WRITING or not path.startswith(readable)):
                raise PermissionError(f"the sandbox forbids opening {path}")
        elif event.startswith(FORBIDDEN):
            raise PermissionError(f"the sandbox forbids {event}")

    sys.addaudithook(hook)


def lower(what: int, soft: int, hard: "int | None") -> None:
    """Set a limit, staying below what this process is itself allowed (hard None: leave that as it is)."""
    allowed = resource.getrlimit(what)[1]
    top = allowed if hard is None else hard if allowed == resource.RLIM_INFINITY else min(hard, allowed)
    resource.setrlimit(what, (soft if top == resource.RLIM_INFINITY else min(soft, top), top))


def forbidden(*_: object) -> None:
    raise PermissionError("the sandbox forbids starting processes")


if __name__ == "__main__":
    main()
