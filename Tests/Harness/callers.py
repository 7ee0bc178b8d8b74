"""Calls ARGV[3] times at once at TCP ARGV[1]:ARGV[2], again and again, as what is no peer: silent, dripping the beginning of a
greeting byte by byte, of another version, or garbage."""
import os, selectors, socket, sys, time

address = (sys.argv[1], int(sys.argv[2]))
greeting = b"MVMMPAIR" + b"\xff\0\0\0" + bytes(32)
callers = {}  # socket: what it has still to say


def call(kind):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(address)
    callers[sock] = (kind, [b"", greeting[:40], greeting, os.urandom(100)][kind % 4])


for number in range(int(sys.argv[3])):
    call(number)
print("calling", flush=True)
while True:
    for sock, (kind, rest) in list(callers.items()):
        try:
            if rest:
                part = rest[:1] if kind % 4 == 1 else rest
                callers[sock] = (kind, rest[sock.send(part):])
            if sock.recv(100) == b"":
                raise ConnectionError
        except BlockingIOError:
            continue
        except OSError:
            sock.close()
            del callers[sock]
            call(kind)
    time.sleep(0.05)
