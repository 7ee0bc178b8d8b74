"""Clients of a key-value store: many connections at once, and a history of what they asked and were told.

ARGV[1] is a JSON object: address, address6, seed, history (path), tcp (pipelining depth of each connection), tcp6 (the same,
over IPv6), udp (number of clients),
churn (number of clients that connect again and again),
memcached (depth of each connection to memcached over TCP), journal (number of clients that have blocks written to the disk),
pause_us (longest time between two requests of a client), patience (seconds without a reply that are a failure),
interface (for resets). Standard input takes `open DEPTH` (one more connection) and `stop`; standard output says `ready`
when every connection has had its first reply, `failure TEXT` at once, and `done JSON` at the end.

A line of the history is an operation: client, its number in that client's order, key, op (set, get, incr, write), argument,
result, begin and end in nanoseconds of the monotonic clock. An operation without end got no reply: it may have happened
or not.
"""
import errno, json, os, random, selectors, socket, struct, sys, threading, time

sys.dont_write_bytecode = True
import capture

RESEND = 200_000_000
settings = json.loads(sys.argv[1])
STALL = settings["patience"] * 1_000_000_000
chance = random.Random(settings["seed"])
history = open(settings["history"], "w", buffering=1 << 16)
selector = selectors.DefaultSelector()
clients, failures = [], []
serial = operations = disk_errors = 0
worst = (0, "")
resets = late_resets = 0
ports = {}  # whose a connection is: by its local port and the guest's


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(text):
    if len(failures) < 20:
        failures.append(text)
        say("failure " + text)


def count_resets(address):
    """Counts TCP resets from the guest that reach the host, those apart that nobody can see: both sides have sent their FIN, and
    the client, which never closes one direction alone, has closed its socket."""
    global resets, late_resets
    for connection, is_over, trail in capture.resets(address, settings["interface"]):
        whose = ports.get(connection, "nobody's")
        if is_over and "closed at" in whose:
            late_resets += 1
        else:
            resets += 1
            fail("a reset of %s from the guest: %s; %s" % (connection, whose, trail))


def blob(number):
    """What a long value that stands for this number looks like."""
    length = 1000 + number * 7919 % 12000
    line = b"%d:" % number
    return (line * (length // len(line) + 1))[:length]


def choose(mine):
    """An operation at random: (op, key, argument). Numbers that are set are all different."""
    global serial
    serial += 1
    kind = chance.random()
    if kind < 0.04:
        return ("set", "blob%d" % chance.randrange(2), serial)
    if kind < 0.08:
        return ("get", "blob%d" % chance.randrange(2), None)
    if kind < 0.14:
        return ("get", "udp%d" % chance.randrange(max(1, settings["udp"])), None)
    if kind < 0.2:
        return ("incr", "own%d" % mine, None)
    key = "key%d" % chance.randrange(3)
    kind = chance.random()
    return ("set", key, serial * 1000) if kind < 0.3 else ("incr", key, None) if kind < 0.65 else ("get", key, None)


class Operation:
    __slots__ = ("number", "op", "key", "argument", "begin")

    def __init__(self, number, choice):
        self.number, (self.op, self.key, self.argument) = number, choice
        self.begin = time.monotonic_ns()


class Client:
    """A connection, or a UDP socket. `waiting` are the operations that have no reply yet, oldest first."""

    def __init__(self, kind):
        self.kind, self.identifier = kind, len(clients)
        self.name = "%s client %d" % (kind, self.identifier)
        self.waiting, self.number, self.next, self.dead, self.answered = [], 0, 0, False, False
        self.connection = None  # its key in `ports`
        clients.append(self)

    def watch(self, sock, events):
        self.sock = sock
        sock.setblocking(False)
        selector.register(sock, events, self)

    def close(self):
        if self.sock:
            if self.connection in ports:
                ports[self.connection] += ", closed at %d ms" % (time.monotonic_ns() // 1_000_000)
            selector.unregister(self.sock)
            self.sock.close()
        self.sock = None

    def broken(self, text):
        if not self.dead:
            fail("%s: %s" % (self.name, text))
        self.dead = True
        self.close()

    def record(self, operation, result, end):
        json.dump({
            "client": self.identifier, "number": operation.number, "key": operation.key, "op": operation.op,
            "argument": operation.argument, "result": result, "begin": operation.begin, "end": end}, history)
        history.write("\n")

    def finished(self, operation, result):
        global operations, worst
        now = time.monotonic_ns()
        operations += 1
        self.answered = True
        worst = max(worst, (now - operation.begin, self.name))
        self.record(operation, result, now)
        # One time in three at once, so that requests follow their replies closely too.
        self.next = now + (chance.randrange(settings["pause_us"] * 1000) if chance.random() < 0.66 else 0)

    def begin(self, choice):
        operation = Operation(self.number, choice)
        self.number += 1
        self.waiting.append(operation)
        return operation

    def read_number(self, operation, value):
        """The number that a value stands for; None when it is not whole."""
        if not operation.key.startswith("blob"):
            return int(value)
        number = int(value.split(b":", 1)[0])
        return number if value == blob(number) else None


class Stream(Client):
    def __init__(self, depth, life=None, kind="TCP", port=6379, address=None):
        super().__init__(kind if life is None else "short-lived " + kind)
        self.port, self.address = port, address or settings["address"]
        self.depth, self.life, self.born = depth, life, 0
        self.connect()

    def connect(self):
        self.input, self.output, self.connected, self.left = b"", b"", False, self.life
        self.born = time.monotonic_ns()
        sock = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        sock.connect_ex((self.address, self.port))
        self.watch(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def work(self, now, stopping):
        global worst
        if self.dead or self.sock is None:
            return
        oldest = self.waiting[0].begin if self.waiting else now
        if not self.connected:
            oldest = self.born
        if now - oldest > STALL:
            return self.broken("%s for %d s" % ("no reply" if self.connected else "not connected", settings["patience"]))
        if not self.connected or stopping:
            return
        if self.left == 0:
            if not self.waiting:
                self.close()
                self.connect()
            return
        while len(self.waiting) < self.depth and now >= self.next and self.left != 0:
            if self.left:
                self.left -= 1
            self.ask()
        self.flush()

    def ask(self):
        operation = self.begin(choose(self.identifier))
        key, argument = operation.key.encode(), operation.argument
        if operation.op == "set":
            value = blob(argument) if operation.key.startswith("blob") else b"%d" % argument
            self.output += b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)
        else:
            verb = operation.op.upper().encode()
            self.output += b"*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(verb), verb, len(key), key)

    def flush(self):
        if not self.output or not self.connected:
            return
        try:
            sent = self.sock.send(self.output)
            self.output = self.output[sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            return self.broken("send: %s" % error.strerror)
        if self.output:
            selector.modify(self.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def ready(self, events):
        global worst
        if not self.connected and events & selectors.EVENT_WRITE:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return self.broken("connect: %s" % os.strerror(error))
            self.connected = True
            self.connection = (self.sock.getsockname()[1], self.port)
            ports[self.connection] = "%s since %d ms" % (self.name, self.born // 1_000_000)
            worst = max(worst, (time.monotonic_ns() - self.born, self.name + " connecting"))
        if events & selectors.EVENT_WRITE:
            selector.modify(self.sock, selectors.EVENT_READ, self)
            self.flush()
        if self.sock is None or not events & selectors.EVENT_READ:
            return
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            return self.broken("receive: %s" % error.strerror)
        if not data:
            return self.broken("the guest closed the connection")
        self.input += data
        while self.waiting and self.reply():
            pass
        if self.input and not self.waiting:
            self.broken("a reply to nothing: %r" % self.input[:80])

    def reply(self):
        """Takes one reply from the input; False when it is not whole, or not a reply."""
        end = self.input.find(b"\r\n")
        if end < 0:
            return False
        operation = self.waiting[0]
        try:
            taken = self.parse(operation, self.input[:end], self.input[end + 2:])
        except ValueError:
            self.broken("%s %s was answered %r" % (operation.op, operation.key, self.input[:200]))
            return False
        if taken is None:
            return False
        result, self.input = taken
        self.waiting.pop(0)
        self.finished(operation, result)
        return True

    def parse(self, operation, line, rest):
        """The result and what follows the reply; None when it is not whole, ValueError when it is none."""
        if operation.op == "set":
            if line != b"+OK":
                raise ValueError
            return None, rest
        if operation.op == "incr":
            if line[:1] != b":":
                raise ValueError
            return int(line[1:]), rest
        if line[:1] != b"$":
            raise ValueError
        length = int(line[1:])
        return (None, rest) if length < 0 else self.value(operation, rest, length, b"\r\n")

    def value(self, operation, rest, length, end):
        """As parse: a value of so many bytes, and what must follow it."""
        if len(rest) < length + len(end):
            return None
        result = self.read_number(operation, rest[:length])
        if rest[length:length + len(end)] != end or result is None:
            raise ValueError
        return result, rest[length + len(end):]


class Journal(Stream):
    """Has blocks written and flushed, one at a time, each with a higher generation. The only one that writes its blocks."""

    def __init__(self, number):
        self.first = number * 16
        super().__init__(1, kind="journal", port=5002)

    def ask(self):
        global serial
        serial += 1
        operation = self.begin(("write", "block%d" % (self.first + chance.randrange(16)), serial))
        self.output += b"W %d %d\n" % (int(operation.key[5:]), operation.argument)

    def reply(self):
        global disk_errors
        end = self.input.find(b"\n")
        if end < 0:
            return False
        operation, line = self.waiting[0], self.input[:end]
        wanted = b"%d %d" % (int(operation.key[5:]), operation.argument)
        if line not in (b"OK " + wanted, b"ERR " + wanted):
            self.broken("a write of block %s was answered %r" % (operation.key, self.input[:200]))
            return False
        self.input = self.input[end + 1:]
        self.waiting.pop(0)
        if line[:2] == b"OK":
            self.finished(operation, None)
        else:
            disk_errors += 1
            self.record(operation, None, None)
        return True


class Memcached(Stream):
    """A connection to memcached. Mostly reads, so that much of what it is told may leave early."""

    def __init__(self, depth):
        super().__init__(depth, kind="memcached", port=11211)

    def ask(self):
        global serial
        serial += 1
        key, kind = "mem%d" % chance.randrange(3), chance.random()
        blobs = chance.random() < 0.1
        if blobs:
            key = "blob" + key
        operation = self.begin(("set", key, serial * (1 if blobs else 1000)) if kind < 0.2 else ("get", key, None))
        key = key.encode()
        if operation.op == "set":
            value = blob(operation.argument) if blobs else b"%d" % operation.argument
            self.output += b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value)
        else:
            self.output += b"get %s\r\n" % key

    def parse(self, operation, line, rest):
        if operation.op == "set":
            if line != b"STORED":
                raise ValueError
            return None, rest
        if line == b"END":
            return None, rest
        word, key, flags, length = line.split()
        if (word, key, flags) != (b"VALUE", operation.key.encode(), b"0"):
            raise ValueError
        return self.value(operation, rest, int(length), b"\r\nEND\r\n")


class Datagrams(Client):
    """memcached over UDP, one request at a time, sent again until it is answered. The only one that writes its key."""

    def __init__(self, number):
        super().__init__("UDP")
        self.key, self.request, self.sent = "udp%d" % number, 0, 0
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.connect((settings["address"], 11211))
        self.watch(sock, selectors.EVENT_READ)

    def work(self, now, stopping):
        global serial
        if self.dead:
            return
        if self.waiting:
            if now - self.waiting[0].begin > STALL:
                self.broken("no reply for %d s" % settings["patience"])
            elif now - self.sent > RESEND:
                self.send()
        elif not stopping and now >= self.next:
            serial += 1
            self.begin(("set", self.key, serial * 1000) if chance.random() < 0.5 else ("get", self.key, None))
            self.request = (self.request + 1) & 0xFFFF
            self.send()

    def send(self):
        operation = self.waiting[0]
        text = "get %s\r\n" % operation.key
        if operation.op == "set":
            value = str(operation.argument)
            text = "set %s 0 0 %d\r\n%s\r\n" % (operation.key, len(value), value)
        self.sent = time.monotonic_ns()
        try:
            self.sock.send(struct.pack("!HHHH", self.request, 0, 1, 0) + text.encode())
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
                self.broken("send: %s" % error.strerror)

    def ready(self, events):
        try:
            data = self.sock.recv(65536)
        except OSError as error:
            return self.broken("receive: %s" % error.strerror)
        if not self.waiting or len(data) < 8 or struct.unpack("!H", data[:2])[0] != self.request:
            return  # the reply to one that had been sent twice
        operation, lines, result = self.waiting[0], data[8:].split(b"\r\n"), None
        if operation.op == "set":
            good = lines == [b"STORED", b""]
        elif lines == [b"END", b""]:
            good = True
        else:
            good = len(lines) == 4 and lines[0].startswith(b"VALUE %s 0 " % self.key.encode()) and lines[1].isdigit()
            result = int(lines[1]) if good else None
        if not good:
            return self.broken("%s was answered %r" % (operation.op, data[8:100]))
        self.waiting.pop(0)
        self.finished(operation, result)


def main():
    for address in [settings["address"]] + [settings["address6"]] * (len(settings["tcp6"]) > 0):
        threading.Thread(target=count_resets, args=(address,), daemon=True).start()
    for depth in settings["tcp"]:
        Stream(depth)
    for depth in settings["tcp6"]:
        Stream(depth, kind="TCP over IPv6", address=settings["address6"])
    for number in range(settings["udp"]):
        Datagrams(number)
    for number in range(settings["journal"]):
        Journal(number)
    for depth in settings["memcached"]:
        Memcached(depth)
    for _ in range(settings["churn"]):
        Stream(1, life=3)
    selector.register(0, selectors.EVENT_READ, None)
    os.set_blocking(0, False)
    said, stopping = False, False
    while not stopping or any(c.waiting and not c.dead for c in clients):
        for key, events in selector.select(0.001):
            if key.data:
                if key.data.sock:
                    key.data.ready(events)
                continue
            text = os.read(0, 4096).decode()
            for line in text.splitlines():
                if line.startswith("open"):
                    Stream(int(line.split()[1]))
            if not text or "stop" in text:
                stopping = True
                selector.unregister(0)
        now = time.monotonic_ns()
        for client in list(clients):
            client.work(now, stopping)
        if not said and all(c.answered or c.dead for c in clients):
            said = True
            say("ready")
    for client in clients:
        for operation in client.waiting:
            client.record(operation, None, None)
    history.close()
    say("done " + json.dumps({
        "operations": operations, "gap": worst[0] // 1_000_000, "slowest": worst[1], "resets": resets, "late_resets": late_resets,
        "disk_errors": disk_errors, "failures": failures, "connections": len(clients)}))


main()
