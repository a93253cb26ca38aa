# ruff: noqa: E501 - one program a line, as it will be read
"""Programs that want to reach the machine: each defines attempt(), which returns SECRET or "done" if it got through.

Before each stand PLACE (a directory of the evaluator with a file `secret`, one `victim` and an empty directory
`empty`; everybody may write to it), PORT and UNIX (that the evaluator listens on), PID (the evaluator's), and SYSCALL, which makes a
system call by number and raises if it fails. FREE lists calls that the filter refuses, by their numbers on x86-64.
"""

GOT_THROUGH = "assert attempt() in ({secret!r}, 'done')\n"
NEIGHBOUR = "def attempt():\n    return 'done'\n"
HEAD = """
import os, sys, contextlib
PLACE, PORT, UNIX, PID = {place!r}, {port}, {unix!r}, {pid}
FILE = PLACE + "/secret"
def SYSCALL(*arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""


def _attempt(*lines: str, before: str = "") -> str:
    return HEAD_MARK + before + "def attempt():\n" + "".join(f"    {line}\n" for line in lines)


HEAD_MARK = "# head\n"
READS = {
    "open": _attempt("return open(FILE).read()"),
    "os.open": _attempt("return os.read(os.open(FILE, 0), 99).decode()"),
    "io.FileIO": _attempt("import io", "return io.FileIO(FILE).read().decode()"),
    "a str subclass": _attempt(
        "return os.read(os.open(Path(FILE), 0), 99).decode()",
        before="class Path(str):\n    def startswith(self, *a): return True\n    def __fspath__(self): return self\n"
        "    def __eq__(self, o): return True\n    __hash__ = str.__hash__\n",
    ),
    "patched posixpath": _attempt(
        "import posixpath",
        "posixpath.realpath = posixpath._joinrealpath = os.path.realpath = lambda *a, **k: '/dev/null'",
        "posixpath._joinrealpath = lambda *a: ('/dev/null', True)",
        "return open(FILE).read()",
    ),
    "dir_fd": _attempt("return os.read(os.open('secret', 0, dir_fd=os.open(PLACE, os.O_PATH)), 99).decode()"),
    "dir_fd of the root": _attempt(
        "return os.read(os.open(FILE[1:], 0, dir_fd=os.open('/', os.O_RDONLY | os.O_DIRECTORY)), 99).decode()"
    ),
    "chdir": _attempt("os.chdir(PLACE)", "return open('secret').read()"),
    "a chdir race": _attempt(
        "import threading",
        "stop, home = [], os.path.dirname(os.__file__)",
        "def race():",
        "    while not stop: os.chdir(PLACE); os.chdir(home)",
        "threading.Thread(target=race, daemon=True).start()",
        "for _ in range(3000):",
        "    with contextlib.suppress(OSError):",
        "        return open('secret').read()",
        "stop.append(1)",
    ),
    "readline's history": _attempt("import readline", "readline.read_history_file(FILE)", "return readline.get_history_item(1)"),
    "sqlite3": _attempt("import sqlite3", "sqlite3.connect(f'file:{FILE}?mode=ro', uri=True).execute('select 1')",
                        "sqlite3.connect(PLACE + '/empty/base').execute('create table t (x)')", "return 'done'"),
    "tkinter": _attempt("import _tkinter", "t = _tkinter.create(None, '', 'Tk', False, False, True, False, None)",
                        "return t.eval(f'set f [open {FILE}]; read $f')"),
    "a subinterpreter": _attempt(
        "import _xxsubinterpreters as x", "i, (r, w) = x.create(), os.pipe()",
        "x.run_string(i, f\"import os; os.write({w}, open({FILE!r}, 'rb').read())\")", "return os.read(r, 99).decode()"),
    "source loader": _attempt("import importlib.machinery as m", "return m.SourceFileLoader('a', FILE).get_data(FILE).decode()"),
    "linecache": _attempt("import linecache", "return linecache.getline(FILE, 1).strip()"),
    "mmap": _attempt("import mmap", "return mmap.mmap(os.open(FILE, 0), 0, prot=1).read().decode()"),
    "sendfile": _attempt("r, w = os.pipe()", "os.sendfile(w, os.open(FILE, 0), 0, 99)", "return os.read(r, 99).decode()"),
    "the environment of the evaluator": _attempt(
        "return 'done' if b'SANDBOX_TEST_KEY' in open(f'/proc/{PID}/environ', 'rb').read() else ''"),
    "the environment of parents": _attempt(
        "for pid in ('1', str(os.getppid()), 'self'):", "    with contextlib.suppress(OSError):",
        "        if b'SANDBOX_TEST_KEY' in open(f'/proc/{pid}/environ', 'rb').read(): return 'done'"),
    "its own environment": _attempt("import posix", "return 'done' if b'SANDBOX_TEST_KEY' in posix.environ else ''"),
    "getenv": _attempt("import ctypes", "libc = ctypes.CDLL(None)", "libc.getenv.restype = ctypes.c_char_p",
                       "return 'done' if libc.getenv(b'SANDBOX_TEST_KEY') else ''"),
    "the evaluator's command line": _attempt("return 'done' if open(f'/proc/{PID}/cmdline').read() else ''"),
    "the evaluator's memory": _attempt("return 'done' if open(f'/proc/{PID}/maps').read() else ''"),
    "the host's memory": _attempt("return 'done' if open(f'/proc/{os.getppid()}/mem', 'rb') else ''"),
    "a listing of the evaluator's": _attempt("return 'done' if 'secret' in os.listdir(PLACE) else ''"),
    "stat": _attempt("return 'done' if os.stat(FILE).st_size else ''"),
    "a home": _attempt("return 'done' if os.listdir(os.path.expanduser('~root')) else ''"),
    "libc's open": _attempt("import ctypes", "libc = ctypes.CDLL(None)", "fd = libc.open(FILE.encode(), 0)",
                            "return os.read(fd, 99).decode()"),
}  # fmt: skip
WRITES = {
    "open for writing": _attempt("open(PLACE + '/new', 'w').close()", "return 'done'"),
    "overwrite": _attempt("open(FILE, 'w').close()", "return 'done'"),
    "mkdir": _attempt("os.mkdir(PLACE + '/new')", "return 'done'"),
    "mkfifo": _attempt("os.mkfifo(PLACE + '/new')", "return 'done'"),
    "mknod": _attempt("os.mknod(PLACE + '/new')", "return 'done'"),
    "symlink": _attempt("os.symlink('/', PLACE + '/new')", "return 'done'"),
    "link": _attempt("os.link(FILE, PLACE + '/new')", "return 'done'"),
    "rename": _attempt("os.rename(FILE, PLACE + '/new')", "return 'done'"),
    "unlink": _attempt("os.unlink(PLACE + '/victim')", "return 'done'"),
    "unlink by dir_fd": _attempt("os.unlink('victim', dir_fd=os.open(PLACE, os.O_PATH))", "return 'done'"),
    "rmdir": _attempt("os.rmdir(PLACE + '/empty')", "return 'done'"),
    "rmtree": _attempt("import shutil", "shutil.rmtree(PLACE)", "return 'done'"),
    "truncate": _attempt("os.truncate(FILE, 0)", "return 'done'"),
    "chmod": _attempt("os.chmod(FILE, 0)", "return 'done'"),
    "utime": _attempt("os.utime(FILE, (0, 0))", "return 'done'"),
    "xattr": _attempt("os.setxattr(FILE, 'user.a', b'1')", "return 'done'"),
    "/tmp": _attempt("open(f'/tmp/sandbox-hostile-{PID}', 'w').close()", "return 'done'"),
    "/dev/shm": _attempt("open(f'/dev/shm/sandbox-hostile-{PID}', 'w').close()", "return 'done'"),
    "posix shared memory": _attempt("import _posixshmem", "_posixshmem.shm_open(f'/sandbox-hostile-{PID}', os.O_CREAT | os.O_RDWR)",
                                    "return 'done'"),
    "readline's history file": _attempt(
        "import readline", "readline.add_history('a')",
        "with contextlib.suppress(OSError): readline.write_history_file(PLACE + '/history')",
        "return 'done' if os.path.exists(PLACE + '/history') or os.path.exists(PLACE + f'/history-{os.getpid():05d}.tmp') else ''"),
    "a socket file": _attempt("import socket", "socket.socket(socket.AF_UNIX).bind(PLACE + '/new')", "return 'done'"),
    "dbm": _attempt("import dbm.dumb", "with contextlib.suppress(OSError): dbm.dumb.open(PLACE + '/base', 'c')",
                    "return 'done' if os.path.exists(PLACE + '/base.dat') else ''"),
    "its own source": _attempt("open(sys.modules['evaluation.sandbox.values'].__file__, 'a').close()", "return 'done'"),
    "the interpreter's library": _attempt("open(os.__file__, 'a').close()", "return 'done'"),
}  # fmt: skip
NETWORK = {
    "tcp": _attempt("import socket", "socket.create_connection(('127.0.0.1', PORT), 2)", "return 'done'"),
    "udp": _attempt("import socket", "socket.socket(type=2).sendto(b'a', ('127.0.0.1', PORT))", "return 'done'"),
    "an abstract socket": _attempt("import socket", "socket.socket(socket.AF_UNIX).connect(UNIX)", "return 'done'"),
    "_socket": _attempt("import _socket", "_socket.socket(2, 1, 0).connect(('127.0.0.1', PORT))", "return 'done'"),
    "http": _attempt("import urllib.request", "urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1)", "return 'done'"),
    "a server": _attempt("import socket", "socket.socket().bind(('', 0))", "return 'done'"),
    "netlink": _attempt("import socket", "socket.socket(socket.AF_NETLINK, 3, 0)", "return 'done'"),
    "a socket by number": _attempt("SYSCALL(41, 2, 1, 0)", "return 'done'"),
}  # fmt: skip
PROCESSES = {
    "fork": _attempt("child = os.fork()", "if not child: os._exit(0)", "return 'done'"),
    "a fork bomb of 64": _attempt("for _ in range(6): os.fork()", "return 'done'"),
    "a daemon": _attempt("if os.fork() == 0:", "    os.setsid()", "    if os.fork() == 0:", "        import time; time.sleep(300)",
                         "    os._exit(0)", "return 'done'"),
    "forkpty": _attempt("import pty", "pty.fork()", "return 'done'"),
    "subprocess": _attempt("import subprocess", "subprocess.run(['/bin/true'])", "return 'done'"),
    "posix_spawn": _attempt("os.posix_spawn('/bin/true', ['true'], {})", "return 'done'"),
    "os.system": _attempt("return 'done' if os.system('true') == 0 else ''"),
    "a fresh _posixsubprocess": _attempt(
        "import importlib", "sys.modules.pop('_posixsubprocess', None)", "p = importlib.import_module('_posixsubprocess')",
        "import subprocess", "subprocess._fork_exec = p.fork_exec", "subprocess.Popen(['/bin/true'])", "return 'done'"),
    "multiprocessing": _attempt("import multiprocessing as m", "p = m.get_context('fork').Process(target=print)", "p.start()",
                                "return 'done'"),
    "exec": _attempt("os.execv(sys.executable or '/bin/true', ['true'])"),
    "vfork by number": _attempt("SYSCALL(57)", "return 'done'"),
    "kill the parent": _attempt("os.kill(os.getppid(), 9)", "return 'done'"),
    "kill the evaluator": _attempt("os.kill(PID, 0)", "return 'done'"),
    "kill all": _attempt("os.kill(-1, 0)", "return 'done'"),
    "killpg": _attempt("os.killpg(os.getpgid(os.getppid()), 0)", "return 'done'"),
    "pidfd_open": _attempt("os.pidfd_open(os.getppid())", "return 'done'"),
    "pidfd of the evaluator": _attempt("os.pidfd_open(PID)", "return 'done'"),
    "sigqueue": _attempt("import ctypes", "return SYSCALL(129, os.getppid(), 0, ctypes.create_string_buffer(128)) or 'done'"),
    "F_SETOWN": _attempt("import fcntl", "fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())", "return 'done'"),
    "prlimit of the parent": _attempt("import resource", "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", "return 'done'"),
    "prlimit of the evaluator": _attempt("import resource", "resource.prlimit(PID, resource.RLIMIT_NOFILE, (9, 9))", "return 'done'"),
    "its own limits": _attempt("import resource", "h = resource.getrlimit(resource.RLIMIT_CPU)[1]",
                               "resource.setrlimit(resource.RLIMIT_CPU, (h + 99, h + 99))", "return 'done'"),
    "more memory": _attempt("import resource", "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "return 'done'"),
    "larger files": _attempt("import resource", "resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))", "return 'done'"),
    "no death with the parent": _attempt("SYSCALL(157, 1, 0, 0, 0, 0)", "return 'done'"),
    "a session of its own": _attempt("os.setsid()", "return 'done'"),
    "nice": _attempt("os.setpriority(0, os.getppid(), 19)", "return 'done'"),
    "an affinity": _attempt("os.sched_setaffinity(os.getppid(), {0})", "return 'done'"),
    "chroot": _attempt("os.chroot('/')", "return 'done'"),
    "typing at the terminal": _attempt("import fcntl", "fcntl.ioctl(0, 0x5412, b'a')", "return 'done'"),
}  # fmt: skip
FREE = {
    "ptrace": (101, 16, 1, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "unshare": (272, 0x10000000),
    "setns": (308, 0, 0), "mount": (165, 0, 0, 0, 0, 0), "keyctl": (250, 0, -3, 0), "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0), "io_uring_setup": (425, 1, 0), "userfaultfd": (323, 1),
    "memfd_create": (319, b"a", 0), "shmget": (29, 0, 4096, 0o1777), "add_key": (248, b"user", b"a", b"b", 1, -2),
    "personality": (135, 0), "clone": (56, 17, 0, 0, 0, 0), "socketpair": (53, 1, 1, 0, 0), "open_tree": (428, -100, b"/", 1),
    "landlock": (444, 0, 0, 1), "inotify_init": (294, 0), "mq_open": (240, b"a", 0o100, 0o600, 0), "seccomp": (317, 0, 0, 0),
}  # fmt: skip
CALLS = {f"{name} by number": _attempt(f"SYSCALL(*{arguments!r})", "return 'done'") for name, arguments in FREE.items()}
RESOURCES = {  # these end one way or another; what counts is that the others do not notice
    "memory": _attempt("hoard = []", "while True: hoard.append(bytearray(10**6))"),
    "one large object": _attempt("return bytearray(10**11)"),
    "a long answer": _attempt("return ['x' * 10**6] * 50 + [str(i) for i in range(10**6)]"),
    "a loop": _attempt("while True: pass"),
    "SIGXCPU ignored": _attempt("import signal", "signal.signal(signal.SIGXCPU, lambda *a: None)", "while True: pass"),
    "sleep": _attempt("import time", "time.sleep(300)"),
    "recursion": _attempt("return attempt()"),
    "recursion without limit": _attempt("sys.setrecursionlimit(10**9)", "n = []", "for _ in range(10**6): n = [n]", "return n"),
    "output": _attempt("for _ in range(200): print('x' * 10**6, flush=True)", "raise ValueError('x' * 10**7)"),
    "threads": _attempt("import threading, time", "for _ in range(10**4): threading.Thread(target=time.sleep, args=(300,)).start()"),
    "descriptors": _attempt("while True: os.pipe()"),
    "abort": _attempt("os.abort()"),
    "a segmentation fault": _attempt("import ctypes", "ctypes.string_at(0)"),
    "a full channel": _attempt("while True: os.write(3, b'x' * 4096)"),
    "a digit too many": _attempt("return 1 << 10**9"),
    "a thread that outlives": _attempt("import threading, time", "threading.Thread(target=time.sleep, args=(300,)).start()", "return 1"),
}  # fmt: skip
BREAKOUTS = {
    f"{kind}: {name}": source
    for kind, group in (
        ("read", READS),
        ("write", WRITES),
        ("network", NETWORK),
        ("process", PROCESSES),
        ("call", CALLS),
    )
    for name, source in group.items()
}
