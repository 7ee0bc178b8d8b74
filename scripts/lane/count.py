"""Counts in redis and in memcached, on one connection each, and says every number that it was told.

ARGV: the guest's address, and a file that ends the count once it exists. A line is `redis N` or `memcached N`, in the order of
the replies; `lost` and the reason when a connection ends. Exit code 0 when every number came once, in order."""

import itertools
import os
import socket
import sys
import threading

ADDRESS, END = sys.argv[1:]
failed = []


def count(name, port, request, prefix, first=b"", reply=b""):
    try:
        connection = socket.create_connection((ADDRESS, port), 120)
        connection.settimeout(120)
        lines = connection.makefile("rb")
        if first:
            connection.sendall(first)
            if lines.readline() != reply:
                raise ValueError(f"no {reply!r}")
        for number in itertools.count(1):
            if os.path.exists(END):
                return
            connection.sendall(request)
            line = lines.readline()
            if line != prefix + b"%d\r\n" % number:
                raise ValueError(f"{line!r} where {number} was due")
            print(name, number, flush=True)
    except (OSError, ValueError) as error:
        print(name, "lost", error, flush=True)
        failed.append(name)


threads = [threading.Thread(target=count, args=each) for each in (
    ("redis", 6379, b"INCR visits\r\n", b":"),
    ("memcached", 11211, b"incr visits 1\r\n", b"", b"set visits 0 0 1\r\n0\r\n", b"STORED\r\n"))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(1 if failed else 0)
