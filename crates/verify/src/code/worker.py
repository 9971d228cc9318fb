# Runs answers and their tests, in the sandbox. Started by code.rs; see there for why there are three kinds of process.
#
# Standard input carries, for every run, a total length and three frames (4 bytes of length, little-endian, then JSON): what
# to do, the answer, the tests. The answer's frame is read by the process that will run it, the tests' by the judge: this
# process, of which both are copies, never holds either. Standard output carries one frame back.
import ast, atexit, bisect, builtins, cmath, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools
import gc, heapq, itertools, json, math, operator, os, random, re, resource, select, signal, string, struct, sys, time
import traceback, types, typing

sys.path[:] = [path for path in sys.path if path]
sys.dont_write_bytecode = True
MODULES = set(getattr(sys, "stdlib_module_names", ())) | {m for m in sys.modules if not m.startswith("_")}
builtins.exit = builtins.quit = sys.exit
# What of Python itself may come from the answer's process to the judge, and what that process may do with the judge's objects
# that it was given: nothing that reaches code or names.
HARMLESS = set("int float complex bool str bytes list tuple dict set frozenset range len sum min max abs sorted round".split())
ALLOWED = {"call", "item", "iter", "next", "len", "bool", "str"}


class Hangup(BaseException):
    """The other end is gone."""


def read_exactly(fd, n):
    parts = []
    while n:
        part = os.read(fd, min(n, 1 << 20))
        if not part:
            raise Hangup
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def read_frame(fd):
    return json.loads(read_exactly(fd, struct.unpack("<I", read_exactly(fd, 4))[0]))


def write_all(fd, data):
    while data:
        try:
            data = data[os.write(fd, data):]
        except BrokenPipeError:
            raise Hangup from None


def write_frame(fd, value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    write_all(fd, struct.pack("<I", len(data)) + data)


# Values between the answer's process and the judge. Only plain data is copied; anything else stays where it is and is
# known by a number. A subclass of a plain type becomes that type: whatever it overrides is gone.

PLAIN = {
    "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque, "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter, "dict": dict,
}
TEXTUAL = {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction, "complex": complex}


class Peer:
    """One end of the line. Each end may call the other, also in the middle of a call."""

    def __init__(self, read, write, is_judge):
        self.read, self.write, self.is_judge = read, write, is_judge
        self.objects, self.numbers = {}, {}

    def keep(self, value):
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects[number] = value  # Kept alive, so that its id stays its own.
        return {"t": "ref", "v": number, "j": self.is_judge}

    def encode(self, value, depth=0):
        kind = type(value)
        if value is None or kind in (bool, str, int, float):
            return value
        if depth > 200:
            return self.keep(value)
        if kind is Proxy:
            return {"t": "ref", "v": object.__getattribute__(value, "_number"), "j": not self.is_judge}
        inner = lambda items: [self.encode(item, depth + 1) for item in items]
        if isinstance(value, list):
            return inner(list.__iter__(value))
        for base in (str, int, float):
            if isinstance(value, base):
                return {str: str.__str__, int: int.__int__, float: float.__float__}[base](value)
        if isinstance(value, dict):
            name = kind.__name__ if PLAIN.get(kind.__name__) is kind else "dict"
            return {"t": name, "v": [inner(pair) for pair in dict.items(value)]}
        for name in ("tuple", "set", "frozenset", "deque"):
            if isinstance(value, PLAIN[name]):
                return {"t": name, "v": inner(PLAIN[name].__iter__(value))}
        for name, base in TEXTUAL.items():
            if kind is base:
                return {"t": name, "v": str(value)}
        if kind in (bytes, bytearray):
            return {"t": kind.__name__, "v": bytes(value).hex()}
        if kind is range:
            return {"t": "range", "v": [value.start, value.stop, value.step]}
        if kind in (types.BuiltinFunctionType, type) and getattr(builtins, value.__name__, None) is value:
            return {"t": "builtin", "v": value.__name__}
        return self.keep(value)

    def decode(self, data):
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, dict):
            return data
        kind, value = data["t"], data["v"]
        if kind == "ref":
            return self.objects[value] if data["j"] == self.is_judge else Proxy(self, value)
        if kind in ("dict", "OrderedDict", "Counter"):
            return PLAIN[kind]({self.decode(k): self.decode(v) for k, v in value})
        if kind in PLAIN:
            return PLAIN[kind](self.decode(value))
        if kind in TEXTUAL:
            return TEXTUAL[kind](value)
        if kind in ("bytes", "bytearray"):
            return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(value)
        if kind == "range":
            return range(*value)
        if kind == "builtin" and (not self.is_judge or value in HARMLESS):
            return getattr(builtins, value)
        raise ValueError("unknown kind " + repr(kind))

    def ask(self, op, target, *args, **named):
        """Has the other end do something, serving it meanwhile."""
        encoded = [self.encode(arg) for arg in args]
        write_frame(self.write, {"op": op, "o": self.encode(target), "a": encoded, "k": {k: self.encode(v) for k, v in named.items()}})
        while True:
            message = read_frame(self.read)
            if "op" in message:
                self.serve(message)
                continue
            # What the callee changed in the arguments shows in the originals.
            for i, data in message.get("m", {}).items():
                replace(args[int(i)], self.decode(data))
            if "x" in message:
                name, text = message["x"]
                kind = getattr(builtins, name, None) if isinstance(name, str) else None
                if not (isinstance(kind, type) and issubclass(kind, Exception)):
                    kind, text = Exception, str(name) + ": " + str(text)
                try:
                    error = kind(text)
                except TypeError:
                    error = Exception(str(name) + ": " + str(text))
                if op != "next" and isinstance(error, (StopIteration, StopAsyncIteration)):
                    # It would end whatever iterates at this end: `all(map(f, xs))` would be true.
                    error = RuntimeError("raised " + type(error).__name__)
                raise error
            return self.decode(message["r"])

    def serve(self, message):
        """Does what the other end asked for."""
        args = []
        try:
            target = message["o"]
            if self.is_judge and not (message["op"] in ALLOWED and target["t"] == "ref" and target["j"] is True):
                raise ValueError("not for the answer to do")
            args = [self.decode(arg) for arg in message["a"]]
            named = {name: self.decode(value) for name, value in message["k"].items()}
            result = OPS[message["op"]](self.decode(target), *args, **named)
            answer = {"r": self.encode(result)}
        except Hangup:
            raise
        except BaseException as error:
            answer = {"x": [type(error).__name__, str(error)[:500]]}
        if not self.is_judge:
            changed = {}
            for i, arg in enumerate(args):
                if isinstance(arg, (list, dict, set, bytearray, collections.deque)):
                    data = self.encode(arg)
                    if data != message["a"][i]:
                        changed[i] = data
            if changed:
                answer["m"] = changed
        write_frame(self.write, answer)


def replace(original, changed):
    if type(original) in (list, bytearray):
        original[:] = changed
    elif isinstance(original, (dict, set, collections.deque)) and type(original) is type(changed):
        original.clear()
        (original.extend if isinstance(original, collections.deque) else original.update)(changed)


OPS = {
    "call": lambda f, *args, **named: f(*args, **named),
    "get": getattr, "set": setattr, "item": operator.getitem, "put": operator.setitem, "iter": iter, "next": next,
    "len": len, "str": str, "repr": repr, "bool": bool, "eq": lambda a, b: bool(a == b), "lt": lambda a, b: bool(a < b),
    "le": lambda a, b: bool(a <= b),
}


class Proxy:
    """What stayed in the other process. It equals no plain data, whatever its class says."""

    def __init__(self, peer, number):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self, name)

    def __setattr__(self, name, value):
        self._peer.ask("set", self, name, value)

    def __call__(self, *args, **named):
        return self._peer.ask("call", self, *args, **named)

    def __getitem__(self, key):
        return self._peer.ask("item", self, key)

    def __setitem__(self, key, value):
        self._peer.ask("put", self, key, value)

    def __iter__(self):
        return Iterator(self._peer.ask("iter", self))

    def __next__(self):
        return self._peer.ask("next", self)

    def __len__(self):
        return self._peer.ask("len", self)

    def __str__(self):
        return self._peer.ask("str", self)

    def __repr__(self):
        return self._peer.ask("repr", self)

    def __bool__(self):
        return self._peer.ask("bool", self) is True

    def __eq__(self, other):
        if type(other) is not Proxy:
            return False
        return self._number == other._number or self._peer.ask("eq", self, other) is True

    def __lt__(self, other):
        return self._peer.ask("lt", self, other) is True if type(other) is Proxy else NotImplemented

    def __le__(self, other):
        return self._peer.ask("le", self, other) is True if type(other) is Proxy else NotImplemented

    def __hash__(self):
        return hash(self._number)


class Iterator:
    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.inner)


def confine(plan, keep):
    """In a new child: nothing is open but what it needs."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        if fd not in keep:
            os.dup2(null, fd)
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2) + [256]:
        os.closerange(low, fd)
        low = fd + 1
    seconds = int(plan["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    random.seed(0)


def run_answer(plan, read, write, ready):
    """The answer's process: defines what the answer defines, then does as the judge asks."""
    answer = read_frame(0)
    os.write(ready, b"x")
    confine(plan, {read, write})
    # Not before the judge has read the tests: killed in the middle of that, it would leave them in the line, to be taken for the
    # next request.
    read_exactly(read, 1)
    peer = Peer(read, write, False)
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    try:
        exec(compile(answer["code"], "answer.py", "exec"), module.__dict__)
        error = None
    except SystemExit:
        error = None
    except BaseException as raised:
        error = traceback.format_exception_only(type(raised), raised)[-1].strip()[:500]
    names = {}
    for name, value in list(module.__dict__.items()):
        if not name.startswith("__") and name.isidentifier():
            names[name] = {"module": value.__name__} if type(value) is types.ModuleType else {"value": peer.encode(value)}
    write_frame(write, {"error": error, "names": names})
    while True:
        peer.serve(read_frame(read))


def called(tree):
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def outside(tree):
    """The nodes that run when the tests do: not what functions, classes and `if __name__ == "__main__"` hold."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        is_main = isinstance(node, ast.If) and any(getattr(n, "id", None) == "__name__" for n in ast.walk(node.test))
        if not (is_main or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda))):
            waiting.extend(ast.iter_child_nodes(node))


def unusable(trees, has_check):
    """Why tests that are Python say nothing of an answer, if that is so. The last one's `check` is called if `has_check`."""
    defined = lambda tree: [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    bodies = [tree.body for tree in trees] + ([node.body for node in defined(trees[-1])] if has_check else [])
    for node in itertools.chain.from_iterable(bodies):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            try:
                __import__(name)
            except ImportError as error:
                return "they import what is not there (the interpreter's site packages are not): " + str(error)
    for tree in trees[1:len(trees) - 1 if has_check else None]:
        running = list(outside(tree))
        calls = [node for node in running if isinstance(node, ast.Call)]
        if defined(tree) and not any(getattr(call.func, "id", None) == "check" for call in calls):
            return "they define `check`, which nothing calls: that takes the row's `entry_point`, and `check` in the last test"
        if not calls and not any(isinstance(node, (ast.Assert, ast.Raise)) for node in running):
            return "a test asserts nothing: it has no `assert`, `raise` or call outside of functions and classes"
    return None


def run_judge(plan, read, write, results, ready):
    """The judge's process: runs the tests, and asks the answer's process for what they call."""
    tests = read_frame(0)
    os.write(ready, b"x")
    os.write(write, b"x")
    confine(plan, {read, write, results})
    report = lambda value: write_all(results, json.dumps(value).encode() + b"\n")
    parts = [tests["setup"]] + tests["tests"]
    try:
        trees = [ast.parse(part) for part in parts]
        codes = [compile(tree, "tests.py", "exec") for tree in trees]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return report({"gold": "they are not Python: " + type(error).__name__ + ": " + str(error)})
    problem = unusable(trees, tests["check"])
    if problem:
        return report({"gold": problem})
    peer = Peer(read, write, True)
    try:
        hello = read_frame(read)
    except (Hangup, ValueError, RecursionError):
        return report({"load": "the program ended before it could be tested"})
    if hello["error"]:
        return report({"load": str(hello["error"])})
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.id for node in nodes if isinstance(node, ast.Name)} | {tests["entry"]}
    with_attributes = {n.value.id for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    # A name of Python's own is the answer's only if it is what is tested: called by every test, when no other name is.
    offered = set(hello["names"])
    common = set.intersection(*(called(tree) for tree in trees[1:])) & offered if len(trees) > 1 else set()
    plain_common = {name for name in common if not hasattr(builtins, name)}
    tested = {tests["entry"]} if tests["entry"] else (set() if plain_common else common)
    space = {"__name__": "tests"}
    for name, what in hello["names"].items():
        if name not in used or (hasattr(builtins, name) and name not in tested):
            continue
        if "module" in what:
            # Under another module's name it would be a disguise.
            module = name if name in MODULES else what["module"]
            if module in MODULES:
                space[name] = __import__(module)
        elif name in with_attributes and name in MODULES and name not in tested:
            space[name] = __import__(name)
        else:
            try:
                space[name] = peer.decode(what["value"])
            except Exception:
                pass
    if tests["entry"]:
        if tests["entry"] not in space:
            return report({"load": "`%s` is not defined" % tests["entry"]})
        space["candidate"] = space[tests["entry"]]
    for i, code in enumerate(codes):
        try:
            if i == len(codes) - 1 and tests["check"]:
                exec(code, space)
                space["check"](space["candidate"])
            else:
                exec(code, space)
            verdict = None
        except Hangup:
            verdict = "the program ended"
        except BaseException as error:
            verdict = (type(error).__name__ + ": " + str(error)[:300]).rstrip(": ")
        if i == 0 and verdict:
            return report({"load": "setting up the tests: " + verdict})
        if i > 0:
            report({"test": i - 1, "failed": verdict})


def run_program(plan, ready, out, err):
    """The answer as a program of its own, from standard input to standard output."""
    answer, data = read_frame(0), read_frame(0)
    os.write(ready, b"x")
    # The input is shorter than a pipe or comes from a process that only writes it.
    read, write = os.pipe()
    if os.fork() == 0:
        confine(plan, {write})
        try:
            write_all(write, data["input"].encode())
        except Hangup:
            pass
        os._exit(0)
    os.dup2(read, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    confine(plan, {0, 1, 2})
    del data
    sys.argv = ["answer.py"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    code = 0
    try:
        exec(compile(answer["code"], "answer.py", "exec"), module.__dict__)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if code and not isinstance(leave.code, int):
            print(leave.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc(limit=-3)
        code = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


def fork(work, *args):
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)
            os._exit(0)
        except BaseException:
            pass
        finally:
            os._exit(70)
    return pid


def gather(fds, deadline, limit, pid=None):
    """Reads all of them to their ends, or until the process ended; what was exceeded, if anything."""
    kept = {fd: [] for fd in fds}
    open_fds = set(fds)
    end = None if pid is None else os.pidfd_open(pid)
    for fd in fds:
        os.set_blocking(fd, False)
    while open_fds or end is not None:
        left = deadline - time.monotonic()
        wanted = list(open_fds) + ([] if end is None else [end])
        ready = select.select(wanted, [], [], left)[0] if left > 0 else []
        if not ready:
            return kept, "time"
        is_end = end in ready
        for fd in list(open_fds) if is_end else ready:
            while True:
                try:
                    data = os.read(fd, 1 << 16)
                except BlockingIOError:
                    break
                limit -= len(data)
                kept[fd].append(data)
                if limit < 0:
                    return kept, "output"
                if not data:
                    open_fds.discard(fd)
                    break
        if is_end:
            os.close(end)
            break
    return kept, None


def wait_ready(fd):
    if os.read(fd, 1) != b"x":
        os._exit(71)  # What is in the line now is not known.
    os.close(fd)


def one_run():
    """One request. Whether there was one."""
    try:
        read_exactly(0, 4)
    except Hangup:
        return False
    plan = read_frame(0)
    deadline = time.monotonic() + plan["seconds"]
    ready, ready_end = os.pipe()
    if plan["kind"] == "tests":
        (answer_in, to_answer), (judge_in, to_judge), (results, results_end) = os.pipe(), os.pipe(), os.pipe()
        fork(run_answer, plan, answer_in, to_judge, ready_end)
        for fd in (ready_end, answer_in, to_judge):
            os.close(fd)
        wait_ready(ready)
        ready, ready_end = os.pipe()
        fork(run_judge, plan, judge_in, to_answer, results_end, ready_end)
        for fd in (judge_in, to_answer, results_end, ready_end):
            os.close(fd)
        wait_ready(ready)
        kept, over = gather([results], deadline, plan["output"])
        os.close(results)
        head, body = {"over": over}, b"".join(kept[results])
    else:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        pid = fork(run_program, plan, ready_end, out_end, err_end)
        for fd in (ready_end, out_end, err_end):
            os.close(fd)
        wait_ready(ready)
        kept, over = gather([out, err], deadline, plan["output"], pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if over is None else None
        os.close(out)
        os.close(err)
        body = b"".join(kept[out])
        head = {"over": over, "code": code, "stderr": b"".join(kept[err])[-2000:].decode("utf-8", "replace")}
    if os.getpid() == 1:
        # All that is left of the run, whatever it did to be left.
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass
    head["retire"] = os.getpid() != 1 or bool(os.listdir("."))
    write_frame(1, json.dumps(head).encode() + b"\n" + body)
    return not head["retire"]


signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.collect()
gc.freeze()
while one_run():
    pass
os._exit(0)
